"""Masks of dropout by sample: what the layers make of activations, and of layouts other than (N, ...)."""

import pytest
import torch
from torch import nn

from zoo.models.dropout import DROPOUT_LAYERS, dropout_on, dropped
from zoo.seeding import stream_keys


@pytest.mark.parametrize("layer", DROPOUT_LAYERS, ids=lambda layer: layer.__name__)
def test_mean_variance_and_shape_of_a_mask_are_those_of_the_layer(layer):
    torch.manual_seed(0)
    shape = (256, 64) if layer in (nn.Dropout, nn.AlphaDropout) else (256, 64, 2, 2)
    shape = shape[:3] if layer is nn.Dropout1d else (*shape, 2) if layer is nn.Dropout3d else shape
    x = torch.randn(shape)
    ours = dropped(layer(0.3), x, stream_keys(torch.arange(256), 0))
    theirs = layer(0.3).train()(x)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.05)
    assert ours.std().item() == pytest.approx(theirs.std().item(), abs=0.05)
    gone = (ours - ours.flatten().mode().values).abs() < 1e-6
    assert gone.float().mean().item() == pytest.approx(0.3, abs=0.03)
    if len(shape) > 2:
        channels = gone.flatten(2).float().mean(2)
        assert set(channels.unique().tolist()) == {0.0, 1.0}, "whole channels"


@pytest.mark.parametrize("layer", DROPOUT_LAYERS, ids=lambda layer: layer.__name__)
def test_with_probability_1_all_is_dropped(layer):
    x = torch.ones(2, 3, 4)
    assert not dropped(layer(1.0), x, torch.arange(2)).any()


def test_parts_of_a_sample_in_the_first_dimension_have_their_own_masks_by_the_sample():
    layer, keys = nn.Dropout(0.5), stream_keys(torch.arange(4), 0)
    x = torch.ones(4 * 9, 16)
    whole = dropped(layer, x, keys)
    assert dropped(layer, x[9:27], keys[1:3]).equal(whole[9:27])
    assert len(whole.unique(dim=0)) == 36


def test_other_layouts_get_masks_by_row():
    assert len(dropped(nn.Dropout(0.5), torch.ones(7, 32), torch.arange(4)).unique(dim=0)) == 7


def test_every_call_of_a_layer_has_its_own_mask_also_in_compiled_code():
    layer = nn.Dropout(0.5)
    network = nn.Sequential(layer, layer).eval()
    network.compile(backend="eager")
    x = torch.ones(8, 64)
    assert network(x).equal(x)
    with dropout_on(network, torch.arange(8)):
        y = network(x)
        assert not network(x).equal(y)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert (y == 4).float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert network(x).equal(x)
