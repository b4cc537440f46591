"""Claims of the figure on the learned force: errors, samples and edits, against the exact force."""

from __future__ import annotations

import pytest
import torch

from zoo.datamodules import Digits
from zoo.hub.loading import load
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.tour import generation
from zoo.tour.generation import batches, relative_error
from zoo.tour.generative_classifier import nearest_neighbor

TRAINING, TEST = batches(Digits())
IDEAL = IdealDenoiser(*TRAINING)


@pytest.fixture(scope="module")
def model():
    return load("diffusion-digits")


def draws(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 8.0])
def test_best_guess_for_gaussian_data_has_the_relative_error_one(sigma):
    x = 0.6 * draws((4000, 8))
    gaussian = IdealDenoiser(torch.zeros(1, 8), torch.zeros(1), std=0.6)
    labels = torch.zeros(len(x))
    error = relative_error(gaussian, (x, labels), sigma, 0.6, torch.Generator().manual_seed(1))
    assert error == pytest.approx(1, rel=0.03)


def test_exact_force_has_no_error_on_training_samples_and_that_of_the_nearest_one_on_others():
    sigma, x, labels = 0.02, TEST[0][:50], TEST[1][:50]
    generator = torch.Generator().manual_seed(0)
    own = TRAINING[0][:50], TRAINING[1][:50]
    assert relative_error(IDEAL, own, sigma, 1.0, generator) == pytest.approx(0, abs=1e-9)
    distance = -nearest_neighbor(TRAINING)(x)[torch.arange(50), labels]
    law = (distance.mean() / 64).item() * (1 / sigma**2 + 1)
    assert relative_error(IDEAL, (x, labels), sigma, 1.0, generator) == pytest.approx(law, rel=0.01)


def test_learned_force_is_worse_on_training_digits_and_better_on_others(model):
    def error(force, batch):
        return relative_error(force, (batch[0][:100], batch[1][:100]), 0.2, 0.5, torch.Generator().manual_seed(0))

    assert error(IDEAL, TRAINING) < 0.01 < error(model, TRAINING)
    assert error(model, TEST) < 0.4 < 2 < error(IDEAL, TEST)
    assert error(model, TEST) == pytest.approx(error(model, TRAINING), rel=0.25)


def test_exact_force_returns_training_samples_and_the_learned_one_does_not(model):
    labels, noise = torch.arange(10), draws((10, 1, 8, 8))
    copies, distance = generation.nearest(generation.generate(IDEAL, noise, labels, 30), TRAINING[0])
    assert distance.max() < 1e-3
    assert all((TRAINING[0][TRAINING[1] == label] == copy).flatten(1).all(1).any() for label, copy in enumerate(copies))
    assert generation.nearest(generation.generate(model, noise, labels, 10), TRAINING[0])[1].min() > 0.1


def test_inpainting_keeps_what_is_known_and_redraws_the_rest(model):
    x, mask = TEST[0][:3], torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    drawn = generation.fill(model, x, mask, 5, torch.Generator().manual_seed(0), TEST[1][:3])
    assert torch.equal(drawn[..., :4], x[..., :4])
    assert (drawn[..., 4:] - x[..., 4:]).abs().mean() > 0.05


def test_the_stronger_the_edit_the_fewer_digits_keep_their_class(model):
    classify = nearest_neighbor(TRAINING)
    kept = [generation.kept_class(model, classify, TEST[0][:40], sigma, 5, seed=0) for sigma in (0.1, 1.0, 6.4)]
    assert kept[0] > 0.95 and kept == sorted(kept, reverse=True) and kept[2] < 0.35
