"""Precision, recall, density and coverage against a second computation, and for generators with known faults."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.metrics import FidelityDiversity, FidelityScores, fidelity_scores, load_extractor
from zoo.metrics import fidelity as module


def measure(real: Tensor, fake: Tensor, **options: int) -> FidelityScores:
    metric = FidelityDiversity(**options)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute()


def normal(n: int, d: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_loops(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, ...]:
    """The four definitions word by word, in float64."""

    def radius(x: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    radii, fake_radii = ([radius(x, i) for i in range(len(x))] for x in (real, fake))
    d = np.array([[np.linalg.norm(x - y) for y in fake] for x in real])
    precision = np.mean([any(d[i, j] <= radii[i] for i in range(len(real))) for j in range(len(fake))])
    recall = np.mean([any(d[i, j] <= fake_radii[j] for j in range(len(fake))) for i in range(len(real))])
    density = sum(d[i, j] <= radii[i] for i in range(len(real)) for j in range(len(fake))) / (k * len(fake))
    coverage = np.mean([d[i].min() <= radii[i] for i in range(len(real))])
    return precision, recall, density, coverage


@pytest.mark.parametrize("chunk", [2**24, 100], ids=["in one part", "in parts"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_scores_are_those_of_the_definitions(k, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    real, fake = normal(40, 3), normal(30, 3, seed=1) + 1
    expected = by_loops(real.double().numpy(), fake.double().numpy(), k)
    assert max(expected[0], expected[1], expected[3]) < 1
    torch.testing.assert_close(torch.stack(measure(real, fake, neighbors=k)), torch.tensor(expected).float())


def test_equal_sets_have_the_highest_scores():
    x = normal(200)
    precision, recall, density, coverage = measure(x, x[torch.randperm(200)])
    assert precision == recall == coverage == 1
    assert density == pytest.approx(6 / 5), "the sample itself and its five neighbors, one of them on the surface"


def test_equal_distributions_have_a_density_near_one_and_nearly_full_coverage():
    scores = measure(normal(2000), normal(2000, seed=1))
    assert scores.density == pytest.approx(1, abs=0.1)
    # Of a point's N + M neighbors the k nearest are all real with a probability of about 2^-k.
    assert scores.coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_copies_of_one_sample_are_precise_and_cover_nearly_nothing():
    real = normal(500)
    precision, recall, density, coverage = measure(real, real[:1].expand(500, -1))
    assert precision == 1
    assert recall == 1 / 500, "the copied sample, because the balls of copies have radius 0"
    assert coverage == pytest.approx(density * 5 / 500), "the balls that contain this sample, all of them by every copy"
    assert coverage < 0.06


def test_copies_are_found_far_from_the_origin():
    """Distances by matrix products would be off by more than the distances themselves."""
    real = 1000 + 0.01 * normal(200)
    precision, recall, _, coverage = measure(real, real[:1].expand(200, -1))
    assert precision == 1
    assert recall == 1 / 200
    assert coverage < 0.15


def test_half_of_the_classes_have_half_of_the_recall_and_the_coverage(digits):
    x, y = digits
    data, extractor = Digits(), load_extractor("digits")
    data.setup()
    real = extractor(x)
    whole, half = (measure(real, extractor(data.training_samples(297, labels=y % n, seed=0))) for n in (10, 5))
    share = (y < 5).float().mean().item()
    for score, of_half in (("recall", half.recall), ("coverage", half.coverage)):
        assert getattr(whole, score) > 0.8
        assert of_half == pytest.approx(share * getattr(whole, score).item(), abs=0.1)
    assert half.precision > 0.8, "what there is, is good"


def test_samples_far_away_have_nothing_of_the_data():
    assert torch.stack(measure(normal(100), normal(100) + 100)).tolist() == [0, 0, 0, 0]


def test_samples_that_are_too_many_are_chosen_at_random_and_memory_is_bounded():
    """Sorted data, of which the first samples would be of one class only."""
    real = torch.cat([normal(500) + 20 * i for i in range(4)])
    metric = FidelityDiversity(max_samples=200)
    for part in real.split(100):
        metric.update(part, real=True)
        metric.update(part, real=False)
        assert sum(len(x) for x in metric.real) <= 200
    kept = metric.real[0].mean(1).div(20).round().long().bincount(minlength=4)
    assert kept.sum() == 200 and kept.min() > 25
    chosen = metric.real[0]
    torch.testing.assert_close(chosen, metric.fake[0], msg="pairs")
    assert metric.compute().coverage == 1
    metric.reset()
    for part in real.split(37):
        metric.update(part, real=True)
    torch.testing.assert_close(metric.real[0], chosen, msg="the same in other batches")


@pytest.mark.parametrize("n", [150, 600], ids=["all", "a choice"])
def test_two_ranks_choose_the_samples_of_one(n):
    real, fake, seeds = normal(n), normal(n, seed=1), torch.randint(2**62, (n,))
    one, *ranks = (FidelityDiversity(max_samples=200) for _ in range(3))
    for metric, rank, step in ((one, 0, 1), (ranks[0], 0, 2), (ranks[1], 1, 2)):
        for part in torch.arange(n)[rank::step].split(64):
            metric.update(real[part], real=True, seeds=seeds[part])
            metric.update(fake[part], real=False, seeds=seeds[part])
    ranks[0].merge_state(ranks[1])
    torch.testing.assert_close(ranks[0].compute(), one.compute(), rtol=0, atol=1e-6)


def test_too_few_samples_and_features_that_are_not_finite_give_nan():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert torch.stack(FidelityDiversity().compute()).isnan().all()
    assert torch.stack(measure(normal(5), normal(20))).isnan().all()
    assert torch.stack(measure(normal(20), normal(5))).isnan().all()
    assert torch.stack(measure(normal(6), normal(6))).isfinite().all()
    damaged = normal(20)
    damaged[3, 2] = torch.inf
    assert torch.stack(measure(normal(20), damaged)).isnan().all()


def test_conversion_of_the_owner_does_not_change_the_precision():
    metric = FidelityDiversity()
    real, fake = normal(100).bfloat16(), normal(100, seed=1).bfloat16()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    nn.Sequential(metric).to(torch.bfloat16)
    assert metric.real[0].dtype == torch.float32
    torch.testing.assert_close(metric.compute(), fidelity_scores(real.float(), fake.float()), rtol=0, atol=0)
    assert not nn.Sequential(metric).state_dict()


def test_copies_of_the_metric_have_its_samples_and_are_independent():
    metric = FidelityDiversity()
    metric.update(normal(50), real=True)
    other = copy.deepcopy(metric)
    other.update(normal(50), real=False)
    assert other.compute().coverage == 1
    assert not metric.fake


def test_bad_options_and_images_instead_of_features_are_named():
    with pytest.raises(UserError, match="neighbors is 0; it must be at least 1"):
        FidelityDiversity(neighbors=0)
    with pytest.raises(UserError, match="max_samples is 5; it must be at least 6"):
        FidelityDiversity(max_samples=5)
    with pytest.raises(ValueError, match=r"features of shape \(2, 1, 8, 8\); expected \(N, d\)"):
        FidelityDiversity().update(torch.zeros(2, 1, 8, 8), real=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_scores_on_a_gpu_equal_those_on_the_cpu():
    real, fake = normal(3000), 0.8 * normal(3000, seed=1)
    scores = torch.stack(measure(real.cuda(), fake.cuda())).cpu()
    torch.testing.assert_close(scores, torch.stack(measure(real, fake)), rtol=0, atol=2e-3)
