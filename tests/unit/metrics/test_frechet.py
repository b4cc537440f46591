"""The Fréchet distance against closed forms and a second computation."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.metrics import FrechetDistance, frechet_distance, load_extractor


class Flat(nn.Module):
    """Extractor whose features are the pixels, so that the distance is known in closed form."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.weight


@pytest.fixture
def metric() -> FrechetDistance:
    return FrechetDistance(load_extractor("digits"))


def distance(metric: FrechetDistance, real: Tensor, fake: Tensor) -> float:
    metric.reset()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def noisy(x: Tensor, std: float) -> Tensor:
    return (x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.0]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    cov_a, cov_b = (rotation @ variances.diag() @ rotation.T for variances in (a, b))
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    result = frechet_distance(torch.zeros(3).double(), cov_a, shift, cov_b)
    torch.testing.assert_close(result, expected)


def test_the_metric_converges_to_the_closed_form_on_gaussian_samples():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(50_000, 1, 2, 2, generator=generator) for _ in range(2))
    # Four features: standard deviation 1 against 2, means 0.5 apart.
    assert distance(FrechetDistance(Flat(4)), real, 2 * fake + 0.5) == pytest.approx(4 * 1 + 4 * 0.25, rel=0.02)


@pytest.mark.parametrize("n", [297, 40])  # 40 samples: singular covariances
def test_the_metric_agrees_with_numpy_on_the_same_features(metric, digits, n):
    real, fake = digits[0][:n], noisy(digits[0][:n], 0.3)
    a, b = (metric.extractor(x).double().numpy() for x in (real, fake))
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * cross
    assert distance(metric, real, fake) == pytest.approx(expected, rel=1e-4)


def test_identical_sets_are_at_distance_zero(metric, digits):
    assert distance(metric, digits[0], digits[0]) == pytest.approx(0, abs=1e-5)


def test_distance_is_symmetric(metric, digits):
    x, y = digits[0][:150], noisy(digits[0][150:], 0.2)
    assert distance(metric, x, y) == pytest.approx(distance(metric, y, x), rel=1e-5)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_distance_grows_with_noise(name, request):
    x = request.getfixturevalue(name)[0][:300]
    metric = FrechetDistance(load_extractor(name))
    values = [distance(metric, x, noisy(x, std)) for std in (0.0, 0.1, 0.2, 0.5, 1.0)]
    assert values == sorted(values)
    assert values[-1] > 10


def test_the_distance_rises_if_a_class_is_missing(metric, digits):
    x, y = digits
    half = torch.arange(len(x)) % 2 == 0
    floor = distance(metric, x[half], x[~half])
    assert distance(metric, x[half], x[~half & (y != 3)]) > 1.2 * floor


def test_the_distance_of_fewer_than_two_images_is_nan(metric, digits):
    metric.update(digits[0], real=True)
    assert math.isnan(metric.compute())
    metric.update(digits[0][:1], real=False)
    assert math.isnan(metric.compute())
    metric.update(digits[0][1:2], real=False)
    assert math.isfinite(metric.compute())


def test_weights_of_the_extractor_are_not_in_the_owners_state(metric):
    owner = nn.Module()
    owner.metric = metric
    assert not owner.state_dict()
    assert not list(owner.parameters())
    assert not list(owner.buffers())
    assert [type(module) for module in owner.modules()] == [nn.Module, FrechetDistance]
    owner.train()
    assert not metric.extractor.training


@pytest.mark.parametrize("convert", ["bfloat16", "double", "half", "to", "set_dtype"])
def test_conversion_of_the_owner_does_not_change_the_precision(metric, digits, convert):
    x = digits[0]
    expected = distance(metric, x, noisy(x, 0.3))
    owner = nn.Sequential(metric)
    if convert == "to":
        owner.to(torch.bfloat16)
    elif convert == "set_dtype":
        metric.set_dtype(torch.bfloat16)
    else:
        getattr(owner, convert)()
    assert float(metric.compute()) == expected  # the sums are unchanged
    assert distance(metric, x, noisy(x, 0.3)) == expected  # also after a reset
    assert metric.real_features_sum.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in metric.extractor.parameters())


def test_the_extractor_moves_with_its_owner(metric):
    nn.Sequential(metric).to("meta")
    assert all(tensor.device.type == "meta" for tensor in metric.extractor.state_dict().values())
    assert metric.real_features_sum.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_distance_on_a_gpu_equals_that_on_the_cpu(metric, digits):
    expected = distance(metric, digits[0], noisy(digits[0], 0.3))
    nn.Sequential(metric).cuda()
    assert distance(metric, digits[0].cuda(), noisy(digits[0], 0.3).cuda()) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_have_the_sums_and_are_independent(metric, digits, duplicate):
    x = digits[0]
    expected = distance(metric, x, noisy(x, 0.3))
    other = duplicate(metric)
    assert float(other.compute()) == expected
    assert other.extractor.sha256 == metric.extractor.sha256
    assert not other.state_dict()
    other.update(x, real=False)
    assert float(other.compute()) != expected
    assert float(metric.compute()) == expected


def test_merged_states_of_two_ranks_equal_one_metric(metric, digits):
    x, y = digits[0], noisy(digits[0], 0.3)
    expected = distance(metric, x, y)
    ranks = [FrechetDistance(metric.extractor) for _ in range(2)]
    for rank, metric_of_rank in enumerate(ranks):
        metric_of_rank.update(x[rank::2], real=True)
        metric_of_rank.update(y[rank::2], real=False)
    ranks[0].merge_state(ranks[1])
    assert float(ranks[0].compute()) == pytest.approx(expected, rel=1e-4)


def test_real_features_are_kept_on_reset_if_requested(digits):
    metric = FrechetDistance(load_extractor("digits"), reset_real_features=False)
    expected = distance(metric, digits[0], noisy(digits[0], 0.3))
    metric.reset()
    metric.update(noisy(digits[0], 0.3), real=False)
    assert float(metric.compute()) == pytest.approx(expected)
