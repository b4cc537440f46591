"""Claims of the figure on the GAN's equilibrium, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.tour import equilibrium
from zoo.tour.equilibrium import DATA, GENERATED, LOG_4


def test_value_of_the_optimal_discriminator_is_that_of_the_theorem():
    best = equilibrium.value(equilibrium.optimal_logits(DATA, GENERATED), DATA, GENERATED)
    assert best == pytest.approx(-LOG_4 + 2 * equilibrium.jensen_shannon(DATA, GENERATED), abs=1e-6)
    for other in (0.0, 0.1, -0.3):  # no other discriminator has a higher value
        logits = equilibrium.optimal_logits(DATA, GENERATED) + other * torch.sin(equilibrium.GRID[:, 0])
        assert equilibrium.value(logits, DATA, GENERATED) <= best + 1e-6


def test_jensen_shannon_is_zero_for_equal_and_log_2_for_distant_distributions():
    shifted = equilibrium.shifted
    assert equilibrium.jensen_shannon(shifted(0.0), shifted(0.0)) == pytest.approx(0, abs=1e-12)
    assert equilibrium.jensen_shannon(shifted(-6.0), shifted(6.0)) == pytest.approx(math.log(2), abs=1e-6)


def test_trained_discriminator_approaches_the_optimal_one():
    model, values = equilibrium.train_discriminator(400)
    best = -LOG_4 + 2 * equilibrium.jensen_shannon(DATA, GENERATED)
    assert best - 0.02 < values[-1][1] <= best + 1e-6
    x = torch.linspace(-2, 2, 50, dtype=torch.double).unsqueeze(1)
    difference = equilibrium.discriminate(model, x).sigmoid() - equilibrium.optimal_logits(DATA, GENERATED, x).sigmoid()
    assert difference.abs().max() < 0.12


def test_frozen_discriminator_has_its_minimum_elsewhere():
    shifted = equilibrium.shifted
    frozen = equilibrium.optimal_logits(shifted(0.0), shifted(2.0))
    fixed = {k: equilibrium.value(frozen, shifted(0.0), shifted(float(k))) for k in range(-3, 3)}
    assert min(fixed, key=fixed.get) == -3, "the generator is driven past the data"
    best = {
        k: equilibrium.value(equilibrium.optimal_logits(shifted(0.0), shifted(k)), shifted(0.0), shifted(k))
        for k in (-1.0, 0.0, 1.0)
    }
    assert min(best, key=best.get) == 0.0 and best[0.0] == pytest.approx(-LOG_4)


def test_dirac_gan_without_penalty_moves_away_as_in_closed_form():
    path = equilibrium.dirac_gan(50, lr=0.2)
    slope = path.prod(dim=1).sigmoid()  # f'(theta psi)
    grown = path[:-1].norm(dim=1) * (1 + 0.2**2 * slope[:-1] ** 2).sqrt()
    torch.testing.assert_close(path[1:].norm(dim=1), grown)


def test_alternating_steps_circle():
    distance = equilibrium.dirac_gan(600, lr=0.2, updates="alternating").norm(dim=1)
    assert distance.min() > 1.2 and distance.max() < 1.6


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.5])
def test_r1_converges_at_the_rate_of_the_eigenvalues(gamma):
    assert equilibrium.measured_rate(gamma) == pytest.approx(equilibrium.convergence_rate(gamma, 0.05), abs=0.01)


def test_rates_of_continuous_time():
    assert equilibrium.convergence_rate(0.0) == 0
    assert equilibrium.convergence_rate(0.6) == pytest.approx(0.3)
    assert equilibrium.convergence_rate(1.0) == pytest.approx(0.5)
    assert equilibrium.convergence_rate(3.0) == pytest.approx(1.5 - math.sqrt(2))
