"""Claims of the figure on reversed diffusion: spreading, force, start of the reverse process, memorization."""

from __future__ import annotations

import pytest
import torch

from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.tour import backwards
from zoo.tour.backwards import PROCESS


def test_variance_of_each_coordinate_grows_by_2dt_in_any_dimension():
    generator = torch.Generator().manual_seed(0)
    for dimension in (1, 2, 5):
        x = torch.randn(40_000, dimension, generator=generator, dtype=torch.double)
        for t, variance in zip((0.5, 2.0), backwards.spread(x, (0.5, 2.0), generator), strict=True):
            assert variance == pytest.approx(1 + 2 * PROCESS.diffusivity * t, rel=0.03)


def test_drawn_data_have_mean_zero_and_the_spread_of_the_mixture():
    x = backwards.draw_data(40_000, torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.std().item() == pytest.approx(backwards.SPREAD, rel=0.02)


def test_force_is_the_gradient_of_the_log_density():
    x = torch.linspace(-3, 3, 50, dtype=torch.double).unsqueeze(1).requires_grad_()
    (slope,) = torch.autograd.grad(backwards.mixture().log_prob(x, 0.7).sum(), x)
    force = PROCESS.reverse_force(x.detach(), backwards.mixture().score(x.detach(), 0.7))
    torch.testing.assert_close(force, 2 * PROCESS.temperature * slope)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_start_that_is_too_narrow_returns_as_in_closed_form(sigma):
    denoiser = IdealDenoiser(torch.tensor([[2.0]], dtype=torch.double), std=1.0)
    x = backwards.sample(denoiser, 20_000, sigma, 200, torch.Generator().manual_seed(0))
    error, variance = backwards.gaussian_return(1.0, sigma, offset=2.0)
    assert 2.0 - x.mean().item() == pytest.approx(error, abs=0.03)
    assert x.var().item() == pytest.approx(variance, abs=0.04)


def test_error_of_the_start_falls_to_that_of_two_draws():
    narrow, wide = (backwards.error_of_start(sigma, 4000, 150, offset=3.0) for sigma in (1.0, 30.0))
    assert narrow > 1 and wide < 0.08
    assert backwards.error_of_start(1.0, 4000, 150, offset=0.0) < narrow / 5


def test_exact_force_of_training_samples_returns_to_them():
    training = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, 1.0]], dtype=torch.double)
    samples, distance = backwards.memorized(training, 300, 5.0, 200)
    assert distance.max() < 1e-6
    counts = torch.cdist(samples, training).argmin(1).bincount(minlength=3)
    assert counts.min() > 60, "all of them are reached, about equally often"
