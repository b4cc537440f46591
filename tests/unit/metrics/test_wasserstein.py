"""The Wasserstein distances against closed forms and SciPy."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from zoo.metrics import SlicedWasserstein, wasserstein1


def test_the_distance_of_a_shifted_line_is_the_shift():
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    metric = SlicedWasserstein(1)
    metric.update(x, real=True)
    metric.update(x[torch.randperm(1000)] - 0.75, real=False)
    assert float(metric.compute()) == pytest.approx(0.75, rel=1e-5)


def test_the_distance_of_gaussians_converges_to_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200_000, generator=generator) for _ in range(2))
    # The quantile functions are z and 3 z: the mean of |2 z| is 2 sqrt(2 / pi).
    assert float(wasserstein1(x, 3 * y)) == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.02)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (12, 8), (100, 37), (64, 64)])
def test_samples_of_unequal_numbers_agree_with_scipy(n, m):
    generator = torch.Generator().manual_seed(n + m)
    x, y = (torch.randn(k, 3, generator=generator).double() for k in (n, m))
    expected = [wasserstein_distance(x[:, k], y[:, k]) for k in range(3)]
    torch.testing.assert_close(wasserstein1(x, y), torch.tensor(expected).double())


def test_the_distance_does_not_change_if_every_point_is_repeated():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, generator=generator) for _ in range(2))
    torch.testing.assert_close(wasserstein1(x.repeat(3), y), wasserstein1(x, y))


def test_the_distance_of_a_shifted_plane_is_the_mean_projection_of_the_shift():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    metric = SlicedWasserstein(2, projections=4096)
    metric.update(x, real=True)
    metric.update(x + torch.tensor([3.0, -4.0]), real=False)
    assert float(metric.compute()) == pytest.approx(5 * 2 / math.pi, rel=0.02)


def test_directions_are_fixed_and_draw_no_random_numbers():
    state = torch.get_rng_state()
    first, second = SlicedWasserstein(2), SlicedWasserstein(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.directions, second.directions)
    assert first.directions.shape == (2, 128)
    assert not first.state_dict()


def test_merged_points_of_two_ranks_equal_one_metric():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 2, generator=generator) for k in (60, 45))
    one, *ranks = (SlicedWasserstein(2) for _ in range(3))
    for cloud, real in ((x, True), (y, False)):
        one.update(cloud, real=real)
        for rank, metric in enumerate(ranks):
            metric.update(cloud[rank::2], real=real)
    ranks[0].merge_state(ranks[1])
    torch.testing.assert_close(ranks[0].compute(), one.compute())


def test_conversion_of_the_owner_does_not_change_the_precision():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    metric = SlicedWasserstein(2)
    metric.update(x, real=True)
    metric.update(x + 1, real=False)
    expected = float(metric.compute())
    nn.Sequential(metric).to(torch.bfloat16)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(metric)))
    copied._computed = None
    with torch.autocast("cpu", torch.bfloat16):
        assert float(copied.compute()) == expected


def test_the_distance_without_samples_is_nan():
    metric = SlicedWasserstein(2)
    metric.update(torch.zeros(3, 2), real=True)
    assert math.isnan(metric.compute())


def test_points_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"\(3, 1\); expected \(N, 2\)"):
        SlicedWasserstein(2).update(torch.zeros(3, 1), real=True)
