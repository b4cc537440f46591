"""Claims on batch normalization, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.tour import batch_norm
from zoo.tour.optimizers import digits

BATCH = digits(64)


@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0])
def test_normalized_weights_have_a_gradient_that_is_orthogonal_and_inverse_to_their_scale(scale):
    one, scaled = (batch_norm.scaled_gradient(True, BATCH, factor) for factor in (1.0, scale))
    assert scaled.loss == pytest.approx(one.loss, rel=1e-6)
    assert scaled.norm * scale == pytest.approx(one.norm, rel=1e-6)
    assert abs(scaled.cosine) < 1e-6


def test_weights_without_normalization_are_not_scale_invariant():
    one, scaled = (batch_norm.scaled_gradient(False, BATCH, factor) for factor in (1.0, 10.0))
    assert abs(scaled.loss - one.loss) > 0.1
    assert abs(one.cosine) > 1e-3


@pytest.mark.parametrize("size", [16, 64, 256])
@pytest.mark.parametrize(("draw", "kurtosis"), [(torch.randn, 3.0), (torch.rand, 1.8)], ids=["normal", "uniform"])
def test_noise_of_a_normalized_value_follows_the_law(draw, kurtosis, size):
    generator = torch.Generator().manual_seed(0)
    values = 3 + 2 * draw(20_000, generator=generator)
    assert batch_norm.noise_law(values, size) == pytest.approx(math.sqrt((kurtosis + 3) / (4 * size)), rel=0.02)
    measured = batch_norm.statistics_noise(values, size, 2000, generator)
    assert measured == pytest.approx(batch_norm.noise_law(values, size), rel=0.06)


def test_batch_norm_learns_at_a_rate_that_diverges_without_it():
    batch = digits(256)
    plain, normalized = (batch_norm.final_loss(norm, batch, lr=1.0, steps=25) for norm in (False, True))
    assert normalized < 1 < 2 < plain
