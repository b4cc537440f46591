"""The point distributions against closed forms, SciPy and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_normal

from zoo.datamodules import Points
from zoo.datamodules.points import MIXTURES, sample_distribution, sample_moons
from zoo.errors import UserError

N = 50_000


def draw(name: str, n: int = N, seed: int = 0):
    return sample_distribution(name, n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MIXTURES)
def test_components_have_their_weights_means_and_deviations(name):
    data = Points(name)
    x, y = draw(name)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    shares = y.bincount(minlength=data.num_classes) / N
    assert (shares - data.weights).abs().max() < 4 * math.sqrt(0.25 / N)  # 4 standard errors at most
    for k in range(data.num_classes):
        part = x[y == k]
        error = data.std / math.sqrt(len(part))
        assert (part.mean(0) - data.centers[k]).abs().max() < 4.5 * error
        assert (part.std(0) - data.std).abs().max() < 4.5 * error


@pytest.mark.parametrize("name", MIXTURES)
def test_moments_of_samples_are_those_of_the_mixture(name):
    data = Points(name)
    x, _ = draw(name)
    mean = data.weights @ data.centers
    variance = data.std**2 + data.weights @ (data.centers - mean).square()
    assert torch.allclose(x.mean(0), mean, atol=0.02)
    assert torch.allclose(x.var(0), variance, rtol=0.02)


@pytest.mark.parametrize("name", MIXTURES)
def test_log_prob_equals_scipys(name):
    data = Points(name)
    x, _ = draw(name, 100)
    x = torch.cat([x, torch.randn(100, *data.input_shape)]).double()
    terms = [
        math.log(weight) + multivariate_normal.logpdf(x.numpy(), center.numpy(), data.std**2)
        for weight, center in zip(data.weights.tolist(), data.centers.double(), strict=True)
    ]
    expected = torch.from_numpy(np.logaddexp.reduce(terms))
    assert torch.allclose(data.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    near = x[:100].float()
    assert data.log_prob(near).dtype == torch.float32
    assert torch.allclose(data.log_prob(near), expected[:100].float(), atol=1e-3)
    assert data.log_prob(x.view(10, 20, -1)).shape == (10, 20)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_density_integrates_to_one(name):
    data = Points(name)
    if data.input_shape == (1,):
        x = torch.linspace(-6, 6, 4001, dtype=torch.float64).unsqueeze(1)
        total = data.log_prob(x).exp().sum() * 12 / 4000
    else:  # a fine grid around each center; the modes are far apart compared with their width
        step = data.std / 4
        ticks = torch.arange(-24, 25, dtype=torch.float64) * step
        around = torch.cartesian_prod(ticks, ticks)
        total = sum(data.log_prob(center + around).exp().sum() * step**2 for center in data.centers)
    assert float(total) == pytest.approx(1, abs=1e-6)


def test_log_prob_stays_finite_far_from_all_modes():
    assert Points("ring").log_prob(torch.tensor([[100.0, 100.0]])).isfinite().all()


def test_ring_and_grid_keep_the_ratios_of_the_literature():
    ring, grid = Points("ring"), Points("grid")
    assert torch.allclose(ring.centers.norm(dim=1), torch.ones(8))
    assert 1 / ring.std == pytest.approx(2 / 0.02)
    nearest = (torch.cdist(grid.centers, grid.centers) + 10 * torch.eye(25)).min()
    assert float(nearest) / grid.std == pytest.approx(2 / 0.05)
    assert (ring.input_shape, ring.num_classes, grid.num_classes) == ((2,), 8, 25)


def test_the_tails_of_the_one_dimensional_components_overlap():
    data = Points("gaussians")
    middle = (data.centers[:-1] + data.centers[1:]) / 2
    assert (data.log_prob(middle).exp() > 0.05).all()
    assert len(set(data.weights.tolist())) == 3
    assert data.centers.abs().max() <= 2


def test_moons_lie_on_their_half_circles_with_gaussian_noise():
    x, y = draw("moons")
    center = torch.tensor([[-0.5, -0.25], [0.5, 0.25]])[y]
    away = x - center
    radius = away.norm(dim=1)
    # Across the curve the noise is Gaussian around radius 1, plus a term by the curvature, 0.05**2 / 2.
    inside = away[:, 1] * (1 - 2 * y) > 0.2  # the right half plane, away from the two ends
    assert float(radius[inside].mean()) == pytest.approx(1 + 0.05**2 / 2, abs=0.001)
    assert float(radius[inside].std()) == pytest.approx(0.05, abs=0.001)
    assert (away[:, 1] * (1 - 2 * y)).min() > -0.3
    assert x.mean(0).abs().max() < 0.02
    assert y.float().mean() == pytest.approx(0.5, abs=0.01)


def test_moons_are_those_of_scikit_learn_centered():
    from sklearn.datasets import make_moons

    theirs, labels = make_moons(1000, noise=None)
    theirs = torch.from_numpy(theirs).float() - torch.tensor([0.5, 0.25])
    mine, mine_labels = sample_moons(20_000, torch.Generator().manual_seed(0), noise=0)
    for label in (0, 1):
        distance = torch.cdist(
            theirs[labels == label], mine[mine_labels == label], compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert distance.min(dim=1).values.max() < 0.01
        assert distance.min(dim=0).values.max() < 0.01


def test_the_density_of_moons_is_refused():
    data = Points("moons")
    assert data.centers is None
    assert data.weights is None
    assert data.std is None
    with pytest.raises(UserError, match="the density of moons has no closed form; use gaussians, ring, grid"):
        data.log_prob(torch.zeros(1, 2))


def test_test_points_depend_on_the_seed_and_not_on_num_train():
    small, large, other = Points("ring", num_train=100, val_size=10), Points("ring"), Points("ring", seed=1)
    test = small.load_split(train=False)[0]
    assert torch.equal(test, large.load_split(train=False)[0])
    assert not torch.equal(test, other.load_split(train=False)[0])


def test_splits_and_seeds_draw_independent_points():
    draws = [Points("gaussians", seed=seed).load_split(train)[0][:10_000, 0] for seed in range(4) for train in (0, 1)]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert len(set(a.tolist()) & set(b.tolist())) < 100  # a few are equal by chance in float32
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.05


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_each_split_follows_the_distribution(split):
    data = Points("gaussians")
    data.setup()
    x = data.split(split)[0].flatten()

    def cumulative(values):
        z = (torch.from_numpy(values).unsqueeze(1) - data.centers.flatten()) / data.std
        return (torch.special.ndtr(z) * data.weights).sum(1).numpy()

    assert kstest(x.double().numpy(), cumulative).pvalue > 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "spiral"}, "'spiral'; it must be one of gaussians, ring, grid, moons"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_test": -5}, "num_test is -5"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Points(**options)
