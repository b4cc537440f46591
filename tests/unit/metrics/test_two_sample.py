"""The classifier two-sample test against the accuracy of the best classifier."""

import math

import pytest
import torch

from zoo.errors import UserError
from zoo.metrics import two_sample_accuracy


def gaussians(n: int, dimensions: int, distance: float, seed: int = 0):
    generator = torch.Generator().manual_seed(100 + seed)
    x, y = (torch.randn(n, dimensions, generator=generator) for _ in range(2))
    return x, y + distance / dimensions**0.5


@pytest.mark.parametrize(("dimensions", "distance"), [(1, 1.0), (2, 3.0)])
def test_the_accuracy_between_gaussians_is_that_of_bayes(dimensions, distance):
    x, y = gaussians(3000, dimensions, distance)
    bayes = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(distance / 2)).item()
    assert two_sample_accuracy(x, y) == pytest.approx(bayes, abs=4 * math.sqrt(bayes * (1 - bayes) / 3000))


def test_one_distribution_is_told_apart_no_better_than_by_chance():
    found = torch.tensor([two_sample_accuracy(*gaussians(600, 2, 0.0, seed), seed) for seed in range(6)])
    error = 0.5 / math.sqrt(600)
    assert abs(found.mean() - 0.5) < 3 * error / math.sqrt(6)
    assert (found - 0.5).abs().max() < 3.5 * error


def test_points_that_the_classifier_was_fitted_to_are_not_those_it_is_scored_on():
    """In so many dimensions it knows the points of one distribution that it was fitted to by heart."""
    found = torch.tensor([two_sample_accuracy(*gaussians(300, 100, 0.0, seed), seed) for seed in range(3)])
    assert found.mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(3 * 300))


def test_points_inside_a_ring_are_told_from_the_ring():
    """No line separates them."""
    angle = torch.linspace(0, 2 * math.pi, 500)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert two_sample_accuracy(100 + ring, 100 + 0.7 * ring) > 0.99


def test_sets_of_unequal_size_and_a_constant_coordinate():
    x, y = gaussians(999, 2, 0.0)
    x[:, 1] = y[:, 1] = 3.0
    assert two_sample_accuracy(x, y[:333]) == pytest.approx(0.75, abs=0.03)  # of always naming the larger set


def test_the_result_depends_on_the_seed_only():
    x, y = gaussians(300, 1, 0.5)
    torch.manual_seed(1)
    with torch.no_grad():
        first = two_sample_accuracy(x, y)
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == drawn, "the global random state is left as it was"
    assert two_sample_accuracy(x, y) == first
    assert len({two_sample_accuracy(x, y, seed) for seed in range(5)}) > 1


def test_a_set_of_one_point_is_refused():
    with pytest.raises(UserError, match="number of points is 1; it must be at least 2"):
        two_sample_accuracy(torch.zeros(1, 2), torch.zeros(5, 2))
