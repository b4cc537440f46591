"""Muon against the singular value decomposition, against torch's Muon and against torch's AdamW."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.optim import Muon, WarmupDecay, orthogonalize, parameter_groups
from zoo.optim.muon import RMS

SHAPES = ((6, 9), (9, 6), (4, 2, 3, 3), (6, 9), (5,), ())


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for tensor, gradient in zip(tensors, parameters(seed=100 + step), strict=False):
            tensor.grad = gradient.detach()
        optimizer.step()


@pytest.mark.parametrize("shape", [(5, 5), (4, 12), (12, 4), (3, 4, 12)])
def test_orthogonalize_has_the_singular_vectors_of_its_argument_and_singular_values_near_one(shape):
    x = 1e-3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    core = left.mT @ orthogonalize(x) @ right.mT  # diagonal, with the new singular values
    values = core.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(core, torch.diag_embed(values), atol=1e-4, rtol=0)
    assert values.min() > 0.65 and values.max() < 1.15


def test_orthogonalize_of_zeros_is_zero():
    assert orthogonalize(torch.zeros(3, 4)).eq(0).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_move_as_with_the_muon_of_torch_up_to_its_bfloat16(weight_decay):
    ours, theirs = (parameters()[:2] for _ in range(2))
    run(Muon(ours, lr=0.1, weight_decay=weight_decay), ours, range(5))
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    run(reference, theirs, range(5))
    for p, q, start in zip(ours, theirs, parameters(), strict=False):
        assert (p - q).norm() < 0.03 * (q - start).norm()


def test_a_kernel_moves_as_the_matrix_of_its_output_channels():
    kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(4, 2, 3, 3)
    kernel.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    for one in (kernel, matrix):
        Muon([one]).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_root_mean_square_of_an_update_does_not_depend_on_the_shape():
    for shape in ((8, 8), (8, 64), (64, 8)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=0.5).step()
        rms = p.square().mean().sqrt().item()
        assert 0.6 < rms / (0.5 * RMS) < 1.15


def test_vectors_and_scalars_move_as_with_adamw():
    ours, theirs = (parameters()[-2:] for _ in range(2))
    options: dict[str, Any] = {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = Muon(ours, vector_lr=0.05, **options), torch.optim.AdamW(theirs, lr=0.05, **options)
    for optimizer, tensors in zip(optimizers, (ours, theirs), strict=True):
        for step in range(5):
            for tensor, gradient in zip(tensors, parameters(seed=step)[-2:], strict=True):
                tensor.grad = gradient.detach()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_groups_are_split_and_follow_one_schedule():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = Muon(parameter_groups(module), lr=0.1, vector_lr=0.01, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"], g["orthogonal"]) for g in optimizer.param_groups] == [
        (0.1, 0.2, True),
        (0.01, 0.0, False),
    ]
    schedule = WarmupDecay(optimizer, final=0.0, total_steps=4)
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.075, 0.0075])


def test_named_parameters_and_single_tensors_are_accepted():
    module = nn.Linear(3, 4)
    assert len(Muon(module.named_parameters()).param_groups) == 2
    assert len(Muon([{"params": module.weight}]).param_groups) == 1


def test_training_resumes_exactly():
    whole, halves = parameters(), parameters()
    run(Muon(whole, weight_decay=0.1), whole, range(6))
    first = Muon(halves, weight_decay=0.1)
    run(first, halves, range(3))
    second = Muon(halves, weight_decay=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, halves, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole, halves, strict=True))


def test_parameters_without_gradient_stay():
    tensors = parameters()
    optimizer = Muon(tensors, weight_decay=0.5)
    tensors[0].grad = torch.ones_like(tensors[0])
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(tensors, parameters(), strict=True)]
    assert moved == [True] + [False] * (len(SHAPES) - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr must be at least 0"),
        ({"vector_lr": -1}, "vector_lr must be at least 0"),
        ({"momentum": 1}, "momentum must be at least 0 and below 1"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        ({"weight_decay": math.nan}, "weight_decay must be"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Muon(parameters(), **options)


def test_complex_parameters_are_refused():
    with pytest.raises(UserError, match="real parameters"):
        Muon([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
