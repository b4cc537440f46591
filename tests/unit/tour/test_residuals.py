"""Claims of the figure on residual networks: depth, blocks that are left out, receptive fields."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.hub.loading import load
from zoo.models.resnet.network import CIFARResNet, PooledResNet
from zoo.tour import residuals
from zoo.tour.optimizers import digits


@pytest.mark.slow
def test_deep_plain_network_has_a_higher_training_error_and_a_residual_one_has_not():
    def final(name: str, blocks: int) -> float:
        return sum(residuals.train(name, blocks, digits(), 150)[1][-30:]) / 30

    assert final("plain", 1) < 0.02
    assert final("plain", 7) > 0.4
    assert final("residual", 7) < 0.02


def test_training_reports_the_error_of_every_step():
    model, errors = residuals.train("residual", 1, digits(200), 12)
    assert len(errors) == 12 and errors[0] > 0.7 and min(errors[6:]) < errors[0]
    assert not model.training


@pytest.mark.parametrize("block_type", ["batch_norm", "residual_batch_norm"])
def test_network_without_a_block_has_its_shortcut_alone(block_type):
    network = CIFARResNet((1, 8, 8), 10, 8, (4, 6, 8), block_type).eval()
    x = torch.randn(3, 1, 8, 8)
    h = network.stem(x)
    for index in (0, 2):  # the second block is left out: every other pixel, two new channels of zeros
        h = network.blocks[index](h)
        if index == 0:
            h = torch.cat([h[:, :, ::2, ::2], torch.zeros(3, 2, 4, 4)], dim=1)
    found = residuals.without_block(network, 1)(x)
    torch.testing.assert_close(found, network.head(h.mean((2, 3))))
    assert not torch.allclose(found, network(x)), "the original is as it was"


def test_residual_block_whose_normalization_is_zero_is_the_identity_as_if_it_were_left_out():
    network = CIFARResNet((1, 8, 8), 10, 14, (4, 4, 4)).eval()
    nn.init.zeros_(network.blocks[1].norm2.weight)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(residuals.without_block(network, 1)(x), network(x))


def test_block_of_a_pooled_network_that_is_left_out_keeps_its_input():
    network = PooledResNet((1, 8, 8), 10, 8, (4, 4)).eval()
    assert residuals.count_blocks(network) == 4
    x = torch.randn(3, 1, 8, 8)
    found = residuals.without_block(network, 3)(x)
    nn.init.zeros_(network.stages[1].blocks[1][1].weight)  # of the batch norm, whose bias is zero
    torch.testing.assert_close(found, network(x))


def test_receptive_field_is_where_the_gradient_of_a_unit_is():
    network = PooledResNet((1, 64, 64), 10, 8, (4, 4, 4)).eval()
    for module in network.modules():  # positive weights, and a mean for the maximum: no input is without effect
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    for stage in network.stages:
        stage.pool = nn.AvgPool2d(2)
    x = torch.ones(1, 1, 64, 64, requires_grad=True)
    h = network.stem(x)
    for stage, field in zip([nn.Identity(), *network.stages], residuals.receptive_fields(network), strict=True):
        h = stage(h)
        unit = h.shape[2] // 2
        (gradient,) = torch.autograd.grad(h[0, 0, unit, unit], x, retain_graph=True)
        rows = gradient[0, 0].abs().sum(1).nonzero().flatten().tolist()
        first = field.start + field.step * unit
        assert rows == [row for row in range(first, first + field.size) if 0 <= row < 64]


def test_crop_is_the_receptive_field_and_black_outside_of_the_picture():
    x = torch.arange(36.0).view(1, 1, 6, 6)
    field = residuals.Field(start=-1, step=2, size=3)
    (inner,) = residuals.crops(x, torch.tensor([1]), torch.tensor([2]), field)
    assert torch.equal(inner[0], x[0, 0, 1:4, 3:6])
    (corner,) = residuals.crops(x, torch.tensor([0]), torch.tensor([0]), field)
    assert torch.equal(corner[0, 1:, 1:], x[0, 0, :2, :2])
    assert (corner[0, 0] == -1).all() and (corner[0, :, 0] == -1).all()


def test_channels_are_chosen_by_their_strongest_pictures():
    outputs = torch.rand(40, 5, 3, 3, generator=torch.Generator().manual_seed(0)) / 10
    outputs[:8, 1, 2, 0] = 5.0
    outputs[:8, 3, 1, 1] = 4.0  # the same pictures as channel 1
    outputs[20:28, 4, 0, 2] = 3.0
    assert residuals.selective_channels(outputs, 2) == [1, 4]
    pictures, rows, columns = residuals.strongest(outputs, 4, 8)
    assert sorted(pictures.tolist()) == list(range(20, 28))
    assert set(rows.tolist()) == {0} and set(columns.tolist()) == {2}


def test_every_block_of_the_trained_network_does_less_than_the_network():
    classifier = load("resnet-fashion-mnist")
    network = (classifier.ema or classifier).network
    data = residuals.FashionMNISTSubset()
    data.setup("predict")
    x, y = data.split("test")
    batch = x[:100], y[:100]
    whole, without = residuals.accuracy(network, batch), residuals.accuracies_without(network, batch)
    assert whole > 0.9 and len(without) == 3
    assert min(without) > 0.6 and whole > max(without)
