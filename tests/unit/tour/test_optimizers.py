"""Claims of the figure on optimizers: equivariance, noise of mini-batches, stability."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from zoo.tour import optimizers
from zoo.tour.optimizers import OPTIMIZERS, SURFACES


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_adam_depends_on_the_axes(name, surface):
    error = optimizers.rotation_error(name, surface, 30.0)
    assert error > 0.5 if name == "Adam" else error < 1e-10
    assert optimizers.rotation_error(name, surface, 90.0) < 1e-10, "exchanged axes and signs"


def test_gradient_descent_in_the_valley_has_the_closed_form():
    path = optimizers.trace(partial(OPTIMIZERS["gradient descent"], lr=0.07), SURFACES[0], 0.0, 20)
    k = torch.arange(21, dtype=torch.double)
    torch.testing.assert_close(path, torch.stack([-4 * 0.93**k, (-0.75) ** k], dim=1))


def test_gradient_of_a_batch_is_the_mean_of_its_samples():
    x, y = optimizers.digits(32)
    model = optimizers.network()
    F.cross_entropy(model(x), y).backward()
    of_batch = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(optimizers.sample_gradients(model, (x, y)).mean(0), of_batch, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 16, 50])
def test_noise_of_batches_follows_the_law(size):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(60, 40, generator=generator)
    measured = optimizers.batch_noise(gradients, size, 1000, generator)
    assert measured == pytest.approx(optimizers.noise_law(gradients, size), rel=0.03)
    assert optimizers.noise_law(gradients, 60) == 0
    assert optimizers.batch_noise(gradients, 60, 2, generator) < 1e-6


def test_each_optimizer_learns_the_digits_at_one_of_the_rates():
    batch = optimizers.digits()
    rates = {"gradient descent": 1.0, "momentum 0.9": 0.1, "ScalarAdam": 1.0, "Adam": 0.03}
    losses = {name: optimizers.final_loss(name, lr, batch, steps=60) for name, lr in rates.items()}
    assert max(losses.values()) < 0.5
    assert optimizers.final_loss("Adam", 10.0, batch, steps=60) > 1
