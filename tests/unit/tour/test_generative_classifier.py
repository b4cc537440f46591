"""Claims on classification by a denoiser, against likelihoods and classifiers in closed form."""

from __future__ import annotations

import pytest
import torch

from zoo.datamodules import Digits
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.tour import generative_classifier as classifier
from zoo.tour.generation import batches

TRAINING, TEST = batches(Digits())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_errors_of_the_exact_denoiser_integrate_to_the_log_likelihood():
    centers, s = torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.double), 0.5
    denoiser = IdealDenoiser(centers, torch.arange(2), std=s)
    x = torch.tensor([[0.2, 0.1], [0.9, -0.4], [0.6, 0.9]], dtype=torch.double)
    sigmas = classifier.noise_levels(40)
    errors = classifier.class_errors(denoiser.denoise, x.repeat(800, 1), 2, sigmas, 1, seeded())
    found = classifier.log_likelihood(errors.view(800, 3, 40, 1, 2).mean(0), sigmas)
    # of a Gaussian, between the densities at the lowest and at the highest noise level
    half = torch.cdist(x, centers).square() / 2
    law = half / (s**2 + sigmas[-1] ** 2) - half / (s**2 + sigmas[0] ** 2)
    torch.testing.assert_close(found[:, 0] - found[:, 1], law[:, 0] - law[:, 1], atol=0.06, rtol=0)


def test_exact_denoiser_classifies_by_the_nearest_sample_at_low_noise_and_the_nearest_mean_at_high_noise():
    x, y = TEST
    errors = classifier.class_errors(IdealDenoiser(*TRAINING).denoise, x, 10, [0.02, 100.0], 1, seeded())
    low, high = errors.argmin(3)[..., 0].unbind(1)
    assert torch.equal(low, classifier.nearest_neighbor(TRAINING)(x).argmax(1))
    means = torch.stack([TRAINING[0][TRAINING[1] == label].mean(0).flatten() for label in range(10)])
    assert torch.equal(high, torch.cdist(x.flatten(1), means).argmin(1))
    assert (low == y).double().mean() > (high == y).double().mean()


def test_own_noise_gives_each_class_another_repeat():
    errors = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    own = classifier.with_own_noise(errors)
    assert all(
        torch.equal(own[:, :, repeat, c], errors[:, :, (repeat - c) % 4, c]) for repeat in range(4) for c in range(5)
    )
    assert torch.equal(own.sum(2), errors.sum(2)), "all draws together are the same"


def test_accuracies_of_one_draw_and_of_all_draws():
    errors, labels = torch.rand(50, 3, 4, 10, generator=seeded()), torch.randint(10, (50,), generator=seeded(1))
    errors[torch.arange(50), :, :, labels] -= 0.2
    one, some, every = classifier.accuracy_by_draws(errors, labels, [1, 5, 12], seeded())
    assert one == pytest.approx(sum(classifier.accuracy_by_level(errors, labels)) / 3)
    assert every == (errors.mean((1, 2)).argmin(1) == labels).double().mean().item()
    order = torch.randperm(12, generator=seeded())
    groups = [errors.flatten(1, 2)[:, part].mean(1).argmin(1) for part in (order[:5], order[5:10])]
    assert some == pytest.approx(sum((group == labels).double().mean().item() for group in groups) / 2)
    assert one < some < every


def test_the_same_noise_for_all_classes_decides_with_fewer_draws():
    denoiser = IdealDenoiser(torch.tensor([[-0.2] * 50, [0.2] * 50]), torch.arange(2), std=0.7)
    labels = torch.arange(2).repeat(200)
    x = denoiser.data[labels] + 0.7 * torch.randn(400, 50, generator=seeded())
    errors = classifier.class_errors(denoiser.denoise, x, 2, [0.5, 1.0, 2.0], 4, seeded())
    shared, own = (
        classifier.accuracy_by_draws(found, labels, [1], seeded())[0]
        for found in (errors, classifier.with_own_noise(errors))
    )
    assert shared > own + 0.1


@pytest.mark.slow
def test_small_residual_network_learns_the_digits():
    model = classifier.train_classifier(TRAINING, steps=100)
    assert classifier.accuracy(model, TEST) > 0.95
    assert not model.training
