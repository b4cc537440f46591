"""The adaptive Runge-Kutta method against SciPy's and closed forms."""

import math

import pytest
import torch

from zoo.models.diffusion.adaptive import dormand_prince


def oscillator(t, y):
    """Van der Pol's: slow stretches and sharp turns, so steps are rejected."""
    return torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])


def pendulum(t, y):
    return torch.stack([y[1], -torch.sin(y[0]) + math.cos(t)])


def counted(slope):
    def count(t, y):
        count.times.append(t)
        return slope(t, y)

    count.times = []
    return count


@pytest.mark.parametrize("slope", [oscillator, pendulum])
@pytest.mark.parametrize("span", [(0.0, 15.0), (3.0, -2.0)])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_the_evaluations_and_the_solution_are_those_of_scipy(slope, span, tolerance):
    integrate = pytest.importorskip("scipy.integrate")
    mine, theirs = counted(slope), counted(lambda t, y: slope(t, torch.from_numpy(y)).numpy())
    start = torch.tensor([0.5, 0.3], dtype=torch.float64)
    found = dormand_prince(mine, span, start, rtol=tolerance, atol=tolerance)
    expected = integrate.solve_ivp(theirs, span, start.numpy(), rtol=tolerance, atol=tolerance)
    assert mine.times == pytest.approx(theirs.times, rel=1e-6)
    torch.testing.assert_close(found, torch.from_numpy(expected.y[:, -1]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exponential_decay_is_the_closed_form_within_the_tolerance(dtype):
    rates = torch.tensor([[0.1, 1.0], [2.0, 0.0]], dtype=dtype)
    found = dormand_prince(lambda t, y: -rates * y, (0.0, 3.0), torch.ones(2, 2, dtype=dtype), rtol=1e-6, atol=1e-6)
    assert found.dtype == dtype
    torch.testing.assert_close(found, (-3 * rates).exp(), rtol=0, atol=3e-6)


def test_a_constant_slope_takes_steps_that_grow_tenfold():
    slope = counted(lambda t, y: torch.ones_like(y))
    found = dormand_prince(slope, (0.0, 1e6), torch.zeros(1, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert found.item() == pytest.approx(1e6)
    assert len(slope.times) < 2 + 6 * 14


def test_a_pole_is_reported():
    with pytest.raises(ArithmeticError, match=r"the step became too small at 1\b"):  # y = 1 / (1 - t)
        dormand_prince(lambda t, y: y**2, (0.0, 2.0), torch.ones(1, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_slope_that_is_not_finite_is_reported(value):
    with pytest.raises(ArithmeticError, match="NaN or Inf at 0"):
        dormand_prince(lambda t, y: y * value, (0.0, 1.0), torch.ones(1), rtol=1e-6, atol=1e-6)
