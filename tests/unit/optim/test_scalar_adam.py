"""ScalarAdam against the lecture's formulas in plain numbers, against torch's Adam, and on two processes."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import UserError
from zoo.optim import OptimizerCallable, ScalarAdam

SCOPES = ("global", "group", "tensor")
SCALES = ("norm", "rms")
SHAPES = ((3, 2), (4,), (), (2, 2))
GROUPS = ((0, 1), (2, 3))  # indices into SHAPES


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def groups(tensors: list[nn.Parameter], *options: dict[str, Any]) -> list[dict[str, Any]]:
    options = options or ({}, {})
    return [{"params": [tensors[i] for i in one], **more} for one, more in zip(GROUPS, options, strict=True)]


def give_gradients(tensors: list[nn.Parameter], step: int, missing: tuple[int, ...] = ()) -> None:
    """Random gradients that depend on the step alone, none for the tensors that are `missing`."""
    for tensor, gradient in zip(tensors, parameters(tensors[0].dtype, seed=100 + step), strict=True):
        tensor.grad = gradient.detach()
    for index in missing:
        tensors[index].grad = None


def run(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(tensors, step)
        optimizer.step()


def plain_numbers(
    steps: list[list[list[float] | None]],
    start: list[list[float]],
    scope: str = "global",
    scale: str = "norm",
    options: tuple[dict[str, Any], ...] = ({}, {}),
    maximize: bool = False,
) -> list[list[float]]:
    """The lecture's formulas over Python floats, one coordinate at a time; `steps[t][i]` is a gradient or None."""
    theta = [list(values) for values in start]
    m = [[0.0] * len(values) for values in start]
    t_of_m = [0] * len(start)
    r: dict[Any, float] = {}
    t_of_r: dict[Any, int] = {}
    for gradients in steps:
        members: dict[Any, list[int]] = {}
        for number, indices in enumerate(GROUPS):
            for i in indices:
                if gradients[i] is not None:
                    key = {"global": "all", "group": number, "tensor": ("tensor", i)}[scope]
                    members.setdefault(key, []).append(i)
        for key, indices in members.items():
            number = 0 if indices[0] in GROUPS[0] else 1
            beta2 = options[number].get("betas", (0.9, 0.999))[1]
            values = [g for i in indices for g in gradients[i] or []]
            square = sum(g * g for g in values)
            if scale == "rms":
                square /= len(values)
            t_of_r[key] = t_of_r.get(key, 0) + 1
            r[key] = beta2 * r.get(key, 0.0) + (1 - beta2) * square
            for i in indices:
                own = options[0 if i in GROUPS[0] else 1]
                lr, decay = own.get("lr", 1e-3), own.get("weight_decay", 0.0)
                beta1, beta2 = own.get("betas", (0.9, 0.999))
                t_of_m[i] += 1
                for j, g in enumerate(gradients[i] or []):
                    g = -g if maximize else g
                    m[i][j] = beta1 * m[i][j] + (1 - beta1) * g
                    m_hat = m[i][j] / (1 - beta1 ** t_of_m[i])
                    r_hat = r[key] / (1 - beta2 ** t_of_r[key])
                    theta[i][j] -= lr * decay * theta[i][j]
                    theta[i][j] -= lr * m_hat / (math.sqrt(r_hat) + own.get("eps", 1e-8))
    return theta


def numbers(tensors: list[Any]) -> list[Any]:
    return [None if tensor is None else tensor.detach().double().flatten().tolist() for tensor in tensors]


def compare_with_plain_numbers(missing: dict[int, tuple[int, ...]], count: int, **how: Any) -> None:
    options, foreach = how["options"], how.pop("foreach")
    tensors = parameters()
    start = numbers(tensors)
    kinds = {key: how[key] for key in how.keys() - {"options"}}
    optimizer = ScalarAdam(groups(tensors, *options), foreach=foreach, **kinds)
    steps = []
    for step in range(count):
        give_gradients(tensors, step, missing.get(step, ()))
        steps.append(numbers([tensor.grad for tensor in tensors]))
        optimizer.step()
    for found, expected in zip(numbers(tensors), plain_numbers(steps, start, **how), strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-13)


# Known answers


def test_three_steps_on_a_quadratic_worked_by_hand():
    """f = |theta|^2 / 2 from (3, 4), beta1 = beta2 = 1/2, lr = 0.1: g = theta, and every step is along (3, 4) / 5.

    1. |g| = 5;    m^ = (3, 4), r^ = 25; the step is 0.1 * (3, 4) / 5, which leaves theta = 0.98 * (3, 4)
    2. |g| = 4.9;  m^ = (5 / 4 + 4.9 / 2) / (3 / 4) = 4.9333,  r^ = (25 / 4 + 24.01 / 2) / (3 / 4) = 24.34
    3. |g| = 4.8000046;  m^ = (3.7 / 2 + 4.8000046 / 2) / (7 / 8) = 4.8571455,  r^ = 23.5971682
    """
    theta = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = ScalarAdam([theta], lr=0.1, betas=(0.5, 0.5), eps=0.0)
    lengths = []
    for _ in range(3):
        theta.grad = theta.detach().clone()
        optimizer.step()
        lengths.append(theta.norm().item())
        assert (theta / theta.norm()).tolist() == pytest.approx([0.6, 0.8])
    second = 4.9 - 0.1 * (3.7 / 0.75) / math.sqrt(18.255 / 0.75)
    third = second - 0.1 * ((1.85 + second / 2) / 0.875) / math.sqrt((9.1275 + second**2 / 2) / 0.875)
    assert lengths == pytest.approx([4.9, second, third], abs=1e-12)
    assert lengths == pytest.approx([4.9, 4.8000046, 4.7000158], abs=1e-7)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_is_the_lecture_s_formulas_in_plain_numbers(scope, scale, maximize, foreach):
    options = (
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.1},
        {"lr": 0.03, "betas": (0.5, 0.95), "weight_decay": 0.2},
    )
    compare_with_plain_numbers({}, 6, scope=scope, scale=scale, maximize=maximize, options=options, foreach=foreach)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_each_average_is_corrected_by_its_own_number_of_updates(scope, scale, foreach):
    """Tensor 1 misses steps, 2 joins late, the second group sits one out, and in one step nothing has a gradient."""
    missing = {0: (2,), 1: (1, 2), 2: (1,), 4: (2, 3), 5: (0, 1, 2, 3), 6: (0, 3)}
    options = ({"lr": 0.1, "betas": (0.8, 0.9)}, {"lr": 0.1, "betas": (0.7, 0.9)})
    compare_with_plain_numbers(missing, 9, scope=scope, scale=scale, options=options, foreach=foreach)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("own", "torchs"), [({}, torch.optim.Adam), ({"weight_decay": 0.1}, torch.optim.AdamW)])
def test_a_single_number_is_trained_as_by_torch_s_adam(own, torchs, scope, scale):
    x, y = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    mine, theirs = ScalarAdam([x], lr=0.05, scope=scope, scale=scale, **own), torchs([y], lr=0.05, **own)
    for _ in range(50):
        for number, optimizer in ((x, mine), (y, theirs)):
            optimizer.zero_grad()
            (number.cos() + 0.1 * number**2).sum().backward()
            optimizer.step()
    assert abs(y.item() - 2) > 0.3
    assert x.item() == pytest.approx(y.item(), abs=2e-6)


@pytest.mark.parametrize(("scale", "length"), [("norm", 1e-3), ("rms", 1e-3 * math.sqrt(15))])
def test_the_first_step_has_the_length_lr_or_lr_times_the_root_of_the_number_of_elements(scale, length):
    before, after = parameters(), parameters()
    assert sum(tensor.numel() for tensor in after) == 15
    run(ScalarAdam(after, lr=1e-3, scale=scale), after, range(1))
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).norm()
    assert moved.item() == pytest.approx(length, rel=1e-7)


def rotated_paths(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
    """Distance of the path of x on f(x) from Q times that of y = Q' x on f(Qy), over random Q."""
    worst = 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        scales = torch.logspace(-1, 1, 6, dtype=torch.float64)
        start = torch.randn(6, generator=generator, dtype=torch.float64)
        x, y = nn.Parameter(start.clone()), nn.Parameter(q.T @ start)
        first, second = make([x]), make([y])
        for _ in range(30):
            for point, optimizer in ((x, first), (y, second)):
                optimizer.zero_grad()
                z = x if point is x else q @ y
                (scales * z**2 + z.sin()).sum().backward()
                optimizer.step()
            worst = max(worst, (x - q @ y).abs().max().item())
    return worst


def test_training_does_not_depend_on_the_axes_and_torch_s_adam_does():
    for scale in SCALES:
        assert rotated_paths(lambda p, scale=scale: ScalarAdam(p, lr=0.1, weight_decay=0.1, scale=scale)) < 1e-10
    assert rotated_paths(lambda p: torch.optim.Adam(p, lr=0.1)) > 0.1


# Scopes and groups


def test_the_global_scope_spans_groups_and_the_group_scope_does_not():
    """Gradients of one group reach the step of the other by the global norm alone."""
    moves = {}
    for scope, factor in itertools.product(("global", "group"), (1.0, 100.0)):
        tensors = parameters()
        start = tensors[0].detach().clone()
        optimizer = ScalarAdam(groups(tensors), lr=1.0, scope=scope)
        give_gradients(tensors, 0)
        tensors[3].grad *= factor
        optimizer.step()
        moves[scope, factor] = (tensors[0] - start).norm().item()
    assert moves["group", 1.0] == moves["group", 100.0]
    assert moves["global", 100.0] < 0.1 * moves["global", 1.0]


def test_a_group_that_comes_later_joins_the_global_r():
    """What was averaged before it came goes on to count."""
    tensors = parameters()
    optimizer = ScalarAdam(tensors[:2], lr=0.1)
    for tensor in tensors[:2]:
        tensor.grad = torch.full_like(tensor, 100.0)
    for _ in range(10):
        optimizer.step()
    optimizer.add_param_group({"params": tensors[2:], "lr": 0.2})
    before = optimizer.state[tensors[0]]["r"].item()
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    start = tensors[3].detach().clone()
    optimizer.step()
    r = 0.999 * before + 0.001 * 15
    assert optimizer.state[tensors[3]]["r"].item() == pytest.approx(r)
    step = 0.2 / (math.sqrt(r / (1 - 0.999**11)) + 1e-8)
    assert (start - tensors[3]).flatten().tolist() == pytest.approx([step] * 4)


def test_a_group_that_contradicts_is_refused_and_leaves_nothing_behind():
    tensors = parameters()
    optimizer = ScalarAdam(tensors[:2])
    for wrong in ({"betas": (0.9, 0.9)}, {"scope": "group"}, {"scale": "rms"}, {"lr": -1.0}):
        with pytest.raises(UserError):
            optimizer.add_param_group({"params": tensors[2:], **wrong})
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": tensors[2:], "betas": (0.5, 0.999)})
    optimizer.param_groups[1]["betas"] = (0.5, 0.9)
    give_gradients(tensors, 0)
    with pytest.raises(UserError, match=r"\[0\.9, 0\.999\]"):
        optimizer.step()
    ScalarAdam(groups(parameters(), {"betas": (0.9, 0.9)}, {"betas": (0.9, 0.99)}), scope="group")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.5}, r"lr must be at least 0, not -0\.5"),
        ({"lr": math.nan}, "not nan"),
        ({"lr": torch.tensor([1.0, 2.0])}, "one number, not 2"),
        ({"eps": -1e-8}, "eps must be at least 0, not -1e-08"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0, not -1\.0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must be at least 0 and below 1, not 1\.0"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\] must be at least 0 and below 1, not -0\.1"),
        ({"betas": (0.9,)}, r"two numbers, not \(0\.9,\)"),
        ({"scope": "layer"}, "scope must be one of global, group, tensor, not layer"),
        ({"scale": "mean"}, "scale must be one of norm, rms, not mean"),
    ],
    ids=str,
)
def test_an_impossible_option_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        ScalarAdam(parameters(), **wrong)


def test_sparse_gradients_and_complex_parameters_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match=r"\(4, 2\) is sparse"):
        ScalarAdam(table.parameters()).step()
    with pytest.raises(UserError, match="view_as_real"):
        ScalarAdam([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


# The manners of torch's optimizers


def test_a_closure_is_called_with_gradients_enabled():
    x = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = ScalarAdam([x], lr=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 5.0
    assert (x.detach() - torch.tensor([1.0, -2.0])).norm().item() == pytest.approx(0.5)
    give_no_gradient = ScalarAdam([nn.Parameter(torch.ones(2))])
    assert give_no_gradient.step() is None
    assert not give_no_gradient.state


def test_a_learning_rate_in_a_tensor_is_followed():
    first, second = parameters(), parameters()
    rate = torch.tensor([0.1], dtype=torch.float64)
    mine = ScalarAdam(first, lr=rate, weight_decay=0.1)
    plain = ScalarAdam(second, lr=0.1, weight_decay=0.1)
    schedule = [torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.1) for o in (mine, plain)]
    for step in range(6):
        for optimizer, tensors, scheduler in ((mine, first, schedule[0]), (plain, second, schedule[1])):
            run(optimizer, tensors, range(step, step + 1))
            scheduler.step()
    assert mine.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(1e-4)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(scope, capturable, dtype, tmp_path):
    def start() -> tuple[list[nn.Parameter], ScalarAdam]:
        tensors = parameters(dtype)
        return tensors, ScalarAdam(groups(tensors), lr=0.01, betas=(0.9, 0.99), scope=scope, capturable=capturable)

    whole, optimizer = start()
    # More steps than bfloat16 can count, and one tensor that has missed some of them.
    for step in range(300):
        give_gradients(whole, step % 7, missing=(1,) if step % 5 == 0 else ())
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, other = start()
    with torch.no_grad():
        for a, b in zip(resumed, whole, strict=True):
            a.copy_(b)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert {other.state[p]["r"].dtype for p in resumed} == {torch.float32}
    for step in range(20):
        for tensors, o in ((whole, optimizer), (resumed, other)):
            give_gradients(tensors, step, missing=(0,) if step == 3 else ())
            o.step()
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(optimizer.state[a][key], other.state[b][key]) for key in optimizer.state[a])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["", "pickle"]
)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_copy_goes_on_alike_and_apart(scope, duplicate):
    tensors = parameters()
    optimizer = ScalarAdam(groups(tensors), lr=0.01, scope=scope)
    run(optimizer, tensors, range(3))
    others, other = duplicate((tensors, optimizer))
    run(optimizer, tensors, range(3, 6))
    moved = [tensor.detach().clone() for tensor in tensors]
    run(other, others, range(3, 6))
    for a, b, c in zip(tensors, moved, others, strict=True):
        assert torch.equal(a, b), "the copy's steps do not move the original"
        assert torch.equal(b, c)


def test_states_that_were_copied_one_by_one_share_their_r_again():
    """As after Lightning has moved them to another device."""
    first, second = parameters(), parameters()
    optimizer, untouched = ScalarAdam(groups(first)), ScalarAdam(groups(second))
    for step in range(6):
        give_gradients(first, step, missing=(2, 3) if step == 4 else ())
        give_gradients(second, step, missing=(2, 3) if step == 4 else ())
        optimizer.step()
        untouched.step()
        for state in optimizer.state.values():
            state.update({key: value.clone() for key, value in state.items()})
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(optimizer.state[a]["r"], untouched.state[b]["r"])


def test_the_command_line_s_parser_takes_it_for_an_optimizer():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    chosen = ["--optimizer=zoo.optim.ScalarAdam", "--optimizer.lr=0.25", "--optimizer.scope=group"]
    made = parser.instantiate(parser.parse_args(chosen)).optimizer(parameters())
    assert isinstance(made, ScalarAdam)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["scope"]) == (0.25, "group")


# Precision


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scope", SCOPES)
def test_bfloat16_parameters_follow_their_float32_twins(scope, foreach):
    half = parameters(torch.bfloat16)
    full = [nn.Parameter(tensor.detach().float()) for tensor in half]
    for tensors in (half, full):
        optimizer = ScalarAdam(tensors, lr=0.05, scope=scope, foreach=foreach)
        for step in range(20):
            give_gradients(half, step)
            for tensor, twin in zip(tensors, half, strict=True):
                tensor.grad = twin.grad.to(tensor.dtype)
            optimizer.step()
        assert all(optimizer.state[tensor]["r"].dtype == torch.float32 for tensor in tensors)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b.detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [60000.0, 1e-6, 0.0], ids=["large", "small", "zero"])
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scope", SCOPES)
def test_no_float16_gradient_is_too_large_or_too_small(scope, foreach, size):
    """60000^2 is beyond float16, and so is what the average is multiplied with after a small gradient or none."""
    x = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    optimizer = ScalarAdam([x], lr=1.0, betas=(0.0, 0.999), scope=scope, foreach=foreach)
    x.grad = torch.full_like(x, size)
    norm = 10 * x.grad[0].item()
    optimizer.step()
    assert optimizer.state[x]["r"].item() == pytest.approx(0.001 * norm**2, rel=1e-3)
    assert x.tolist() == pytest.approx([-0.1 * norm / (norm + 1e-8)] * 100, rel=2e-3)


def test_parameters_of_several_dtypes_share_one_r():
    mixed = [nn.Parameter(torch.zeros(4, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    optimizer = ScalarAdam(mixed, lr=1.0)
    for tensor in mixed:
        tensor.grad = torch.full_like(tensor, 2.0)
    optimizer.step()
    assert {id(optimizer.state[tensor]["r"]) for tensor in mixed} == {id(optimizer.state[mixed[0]]["r"])}
    for tensor in mixed:
        assert tensor.tolist() == pytest.approx([-2 / math.sqrt(48)] * 4, rel=4e-3)


# Kernels


class Calls(TorchDispatchMode):
    """Counts calls of operators; refuses those that bring a number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket is not torch.ops.aten._local_scalar_dense, "the host waits for a number"
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_no_step_brings_a_number_to_the_host(scope, scale, capturable, foreach):
    tensors = parameters()
    rate = torch.tensor(0.1)
    options = {"weight_decay": 0.1, "capturable": capturable, "foreach": foreach}
    optimizer = ScalarAdam(groups(tensors), lr=rate, scope=scope, scale=scale, **options)
    for step in range(3):
        give_gradients(tensors, step, missing=(1,) if step == 1 else ())
        with Calls():
            optimizer.step()
    with pytest.raises(AssertionError, match="host waits"), Calls():
        rate.item()


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_groups_on_two_gpus_share_one_r_without_waiting(scope, scale, capturable, foreach):
    """On pretended GPUs, which refuse to mix devices and to give out a number."""
    with FakeTensorMode():
        tensors = [nn.Parameter(torch.ones(3, 2, device=f"cuda:{i // 2}")) for i in range(4)]
        options = {"scope": scope, "scale": scale, "capturable": capturable, "foreach": foreach, "weight_decay": 0.1}
        optimizer = ScalarAdam(groups(tensors, {"lr": 0.1}, {"lr": torch.tensor(0.1)}), **options)
        for step in range(3):
            for tensor in tensors:
                tensor.grad = torch.ones_like(tensor)
            if step == 1:
                tensors[3].grad = None
            optimizer.step()
        for tensor in tensors:
            state = optimizer.state[tensor]
            assert state["r"].device == tensor.device
            assert state["step"].device == (tensor.device if capturable else torch.device("cpu"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_many_tensors_take_no_more_calls_than_few(scope, scale):
    """Also after a checkpoint in which nothing is shared any more."""
    counts = []
    for number in (3, 40):
        tensors = [nn.Parameter(torch.ones(2, 2)) for _ in range(number)]
        optimizer = ScalarAdam(tensors, scope=scope, scale=scale, weight_decay=0.1)
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        for _ in range(2):
            optimizer.step()
            with Calls() as calls:
                optimizer.step()
            counts.append(calls.count)
            saved = optimizer.state_dict()
            saved["state"] = {i: {k: v.clone() for k, v in one.items()} for i, one in saved["state"].items()}
            optimizer.load_state_dict(saved)
    assert len(set(counts)) == 1
    assert counts[0] < 40


def test_a_graph_is_not_captured_with_counts_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode():
        x = nn.Parameter(torch.ones(2, device="cuda"))
        x.grad = torch.ones_like(x)
        ScalarAdam([x], capturable=True).step()
        with pytest.raises(UserError, match="capturable=True"):
            ScalarAdam([x]).step()


# Two processes

SCRIPT = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from zoo.errors import UserError
from zoo.optim import ScalarAdam

SCOPES, SCALES = ("global", "group", "tensor"), ("norm", "rms")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()  # the last has nothing for rank 1


def optimizer_of(model, **options):
    weights, biases = ([p for p in model.parameters() if (p.ndim == 2) == wide] for wide in (True, False))
    return ScalarAdam([{"params": weights}, {"params": biases, "weight_decay": 0.1}], lr=0.05, **options)


def train(model, optimizer, x, steps=6):
    for step in range(steps):
        optimizer.zero_grad()
        ((model(x).squeeze(1) - x.sum(1).sin()) ** 2).mean().backward()
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def shard(mesh):
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(mesh, scope, x):
    # The weight is whole on both ranks and half of its gradient on each: DTensor calls that partial.
    w = nn.Parameter(distribute_tensor(torch.ones(5, 3, dtype=torch.float64), mesh, [Replicate()]))
    optimizer = ScalarAdam([w], lr=0.05, scope=scope)
    x = distribute_tensor(x, mesh, [Shard(0)])
    for _ in range(4):
        optimizer.zero_grad()
        (x @ w).pow(2).sum().backward()
        partial = w.grad.placements[0].is_partial()
        optimizer.step()
    return w.full_tensor().detach(), partial


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    hybrid = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    half = x[4 * rank : 4 * rank + 4]
    found = {}
    for scope in SCOPES:
        for scale in SCALES:
            options = {"scope": scope, "scale": scale}
            model = network()
            found["one", scope, scale] = train(model, optimizer_of(model, **options), x)
            model = DistributedDataParallel(network())
            found["ddp", scope, scale] = train(model, optimizer_of(model, **options), half)
            for foreach in (True, False):
                model = shard(mesh)
                found["sharded", scope, scale, foreach] = train(
                    model, optimizer_of(model, **options, foreach=foreach), half
                )
        model = shard(hybrid)
        found["hybrid", scope] = train(model, optimizer_of(model, scope=scope), half)
        model = shard(mesh)
        optimizer = optimizer_of(model, scope=scope)
        train(model, optimizer, half, 3)
        other = shard(mesh)
        other.load_state_dict(model.state_dict())
        resumed = optimizer_of(other, scope=scope)
        dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=f"{folder}/{scope}")
        saved = get_optimizer_state_dict(other, resumed)
        dcp.load(saved, checkpoint_id=f"{folder}/{scope}")
        set_optimizer_state_dict(other, resumed, saved)
        found["whole", scope] = train(model, optimizer, half, 3)
        found["resumed", scope] = train(other, resumed, half, 3)
        found["partial", scope], found["partial gradient"] = tensor_parallel(mesh, scope, x)
    try:
        flat = FullyShardedDataParallel(nn.Linear(4, 4), use_orig_params=True, device_id=torch.device("cpu"))
        ScalarAdam(flat.parameters())
    except UserError as error:
        found["fsdp1"] = str(error)
    torch.save(found, f"{folder}/rank_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "train.py", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def assert_alike(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_two_ranks_with_half_of_the_batch_train_as_one_with_the_whole(two_ranks, scope, scale):
    first, second = (found["ddp", scope, scale] for found in two_ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_alike(first, two_ranks[0]["one", scope, scale])


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_sharded_parameters_train_as_whole_ones(two_ranks, scope, scale, foreach):
    assert_alike(two_ranks[0]["sharded", scope, scale, foreach], two_ranks[0]["one", scope, scale])


@pytest.mark.parametrize("scope", SCOPES)
def test_copies_of_shards_are_not_added_up(two_ranks, scope):
    assert_alike(two_ranks[0]["hybrid", scope], two_ranks[0]["one", scope, "norm"])


@pytest.mark.parametrize("scope", SCOPES)
def test_a_distributed_checkpoint_resumes_a_sharded_run_bit_for_bit(two_ranks, scope):
    for found in two_ranks:
        assert all(torch.equal(a, b) for a, b in zip(found["whole", scope], found["resumed", scope], strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_gradient_in_parts_is_added_up_before_its_norm_is_taken(two_ranks, scope):
    assert two_ranks[0]["partial gradient"]
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = nn.Parameter(torch.ones(5, 3, dtype=torch.float64))
    optimizer = ScalarAdam([w], lr=0.05, scope=scope)
    for _ in range(4):
        optimizer.zero_grad()
        (x @ w).pow(2).sum().backward()
        optimizer.step()
    assert_alike([two_ranks[0]["partial", scope]], [w.detach()])


def test_flat_shards_are_refused(two_ranks):
    assert all("fully_shard" in found["fsdp1"] for found in two_ranks)
