"""The moving average against its closed form."""

import pytest
import torch
from torch import nn

from zoo.models.ema import EMA


def constant(value: float) -> nn.Linear:
    network = nn.Linear(1, 1)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


def test_the_weight_of_a_value_halves_in_the_half_life():
    ema = EMA(constant(1.0), half_life=1000, warmup=1e9)
    ema.images = 1  # not the first image, at which warm-up discards the initial weights
    for _ in range(10):
        ema.update(constant(0.0), images=100)
    assert ema.network.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_the_average_does_not_depend_on_the_batch_size():
    averages = []
    for images in (10, 100):
        ema = EMA(constant(1.0), half_life=500, warmup=1e9)
        for _ in range(1000 // images):
            ema.update(constant(0.0), images=images)
        averages.append(ema.network.weight.item())
    assert averages[0] == pytest.approx(averages[1], rel=1e-5)


def test_with_warmup_the_initial_weights_are_forgotten_early():
    ema = EMA(constant(1.0), half_life=1e6, warmup=0.05)
    for _ in range(100):
        ema.update(constant(0.0), images=10)
    assert ema.network.weight.item() < 1e-3, "without warm-up it would be 0.999"


def test_average_and_number_of_images_are_in_the_state_dict():
    ema = EMA(constant(1.0), half_life=1000)
    ema.update(constant(0.3), images=64)
    other = EMA(constant(0.0), half_life=1000)
    other.load_state_dict(ema.state_dict())
    assert other.images == 64
    assert torch.equal(other.network.weight, ema.network.weight)


def test_the_average_has_no_gradients_and_its_own_memory():
    network = constant(1.0)
    ema = EMA(network, half_life=1000)
    assert not any(p.requires_grad for p in ema.parameters())
    network.weight.data.fill_(5.0)
    assert ema.network.weight.item() == 1.0


def test_running_statistics_are_averaged_like_weights():
    network = nn.BatchNorm1d(1)
    ema = EMA(network, half_life=1000, warmup=1e9)
    ema.images = 1
    nn.init.constant_(network.weight, 3.0)
    network.running_mean.fill_(2.0)
    network.num_batches_tracked.fill_(7)
    for _ in range(10):
        ema.update(network, images=100)
    assert ema.network.weight.item() == pytest.approx(2.0, rel=1e-5), "half way from 1 to 3"
    assert ema.network.running_mean.item() == pytest.approx(1.0, rel=1e-5), "half way from 0 to 2"
    assert ema.network.num_batches_tracked.item() == 7


def test_constant_buffers_are_kept_exactly_also_infinite_ones():
    network = nn.Linear(1, 1)
    network.register_buffer("mask", torch.tensor([-torch.inf, 0.1, torch.inf]))
    ema = EMA(network, half_life=1000)
    for _ in range(5):
        ema.update(network, images=64)
    assert ema.network.mask.equal(network.mask)
