"""Claims of the figure on vanishing gradients, against the factors of a layer in theory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zoo.tour import vanishing
from zoo.tour.optimizers import digits
from zoo.tour.vanishing import DEFAULT, HE, Design

BATCH = digits(64)


@pytest.mark.parametrize("gain", [DEFAULT, 1.0, HE])
def test_factor_of_a_wide_relu_layer_is_gain_over_root_two(gain):
    factors = [vanishing.factor(Design("ReLU", gain), BATCH, depth=8, width=512, seed=seed) for seed in range(3)]
    assert sum(factors) / 3 == pytest.approx(gain / math.sqrt(2), rel=0.05)


def test_factor_of_a_sigmoid_is_at_most_a_quarter_of_the_gain():
    for gain in (0.2, 1.0, 3.0):
        found = vanishing.factor(Design("sigmoid", gain), BATCH, depth=8, width=256)
        assert 0 < found < 1.05 * gain / 4
    small = vanishing.factor(Design("sigmoid", 0.2), BATCH, depth=8, width=256)
    assert small == pytest.approx(0.05, rel=0.05)


def test_default_gain_is_that_of_torch():
    assert nn.Linear(256, 256).weight.std().item() * 16 == pytest.approx(DEFAULT, rel=0.02)


def test_activations_shrink_without_batch_norm_and_not_with_it():
    plain, normalized = (
        [h.std().item() for h in vanishing.layers(Design(gain=DEFAULT, batch_norm=norm), BATCH, 20, 64)[0]]
        for norm in (False, True)
    )
    assert plain[-1] < 1e-4 * plain[0]
    assert normalized == pytest.approx([1.0] * 20, abs=0.01)


def test_batch_norm_explodes_without_shortcuts_and_hardly_with_them():
    def ratio(design: Design) -> float:
        norms = vanishing.layers(design, BATCH, 30, 64)[1]
        return norms[0] / norms[-1]

    assert ratio(Design(gain=DEFAULT)) < 1e-8
    assert ratio(Design(batch_norm=True)) > 50
    for shortcut in ("post", "pre"):
        assert 1 < ratio(Design(batch_norm=True, shortcut=shortcut)) < 40


@pytest.mark.parametrize("shortcut", ["post", "pre"])
def test_block_without_weights_is_its_shortcut(shortcut):
    block = vanishing.Block(8, Design(shortcut=shortcut))
    for linear in block.linears:
        nn.init.zeros_(linear.weight)
    x = torch.randn(4, 8)
    torch.testing.assert_close(block(x, []), x.relu() if shortcut == "post" else x)


def test_deep_plain_network_does_not_learn_and_one_with_shortcuts_does():
    batch = digits()
    assert vanishing.train(Design(gain=DEFAULT), batch, 20, 32, steps=40) > 2.2
    assert vanishing.train(Design(batch_norm=True, shortcut="pre"), batch, 20, 32, steps=40) < 1.0
