"""Temperature scaling: the temperature that is found, its bounds, and what it leaves as it is."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from zoo.metrics import TemperatureScaling, fit_temperature
from zoo.metrics.temperature import BOUNDS


def calibrated(n: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 10.0])
def test_a_known_temperature_is_recovered(temperature):
    logits, y = calibrated(20_000)
    fit = fit_temperature(logits * temperature, y)
    assert fit.temperature == pytest.approx(temperature, rel=0.03)
    assert fit.nll_after == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-3)


def test_the_temperature_is_the_minimum_that_another_optimizer_finds():
    logits, y = calibrated(300)
    logits = 1000 + 4 * logits  # a constant that all logits of a sample share has no effect

    def nll(log_temperature: float) -> float:
        return torch.nn.functional.cross_entropy(logits.double() / math.exp(log_temperature), y).item()

    fit = fit_temperature(logits, y)
    found = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6})
    assert fit.temperature == pytest.approx(math.exp(found.x), rel=1e-3)
    assert fit.nll_after == pytest.approx(found.fun, rel=1e-4)
    assert fit.nll_before == pytest.approx(nll(0), rel=1e-4)


def test_logits_without_a_minimum_get_the_nearest_bound():
    logits = torch.eye(3) * 2
    assert fit_temperature(logits, torch.arange(3)).temperature == pytest.approx(BOUNDS[0], rel=1e-3), "all correct"
    assert fit_temperature(-logits, torch.arange(3)).temperature == pytest.approx(BOUNDS[1], rel=1e-3), "all wrong"
    same = fit_temperature(torch.zeros(3, 3), torch.arange(3))
    assert BOUNDS[0] <= same.temperature <= BOUNDS[1] and same.nll_after == pytest.approx(math.log(3))


def test_logits_that_are_not_finite_have_no_temperature():
    assert math.isnan(fit_temperature(torch.tensor([[0.0, math.nan]]), torch.tensor([0])).temperature)


def test_the_metric_fits_all_batches_and_forgets_them_on_reset():
    logits, y = calibrated(500)
    metric = TemperatureScaling()
    for part, labels in zip(logits.split(120), y.split(120), strict=True):
        metric.update(3 * part, labels)
    assert metric.compute() == fit_temperature(3 * logits, y)
    metric.reset()
    metric.update(logits[:100], y[:100])
    assert metric.compute() == fit_temperature(logits[:100], y[:100])
