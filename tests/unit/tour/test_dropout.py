"""Claims of the figure on dropout: the exact mean over all masks, the mean of several networks, and the rescaling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zoo.models.mlp.module import MLPClassifier
from zoo.models.mlp.network import DropoutMLP
from zoo.tour import dropout


def network(depth: int, p: float, units: int = 8, bias: bool = True) -> DropoutMLP:
    """Untrained network on 8x8 pixels, in eval mode, with weights as large as those of a trained one."""
    torch.manual_seed(0)
    model = DropoutMLP((1, 8, 8), 10, units, depth, input_dropout=0.0, hidden_dropout=p).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 3
            layer.bias.data *= bias
    return model


def pixels(n: int) -> torch.Tensor:
    return 2 * torch.rand(n, 1, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_scaled_weights_are_the_geometric_mean_of_all_masks_below_a_softmax_layer(p):
    model, x = network(1, p), pixels(20)
    geometric, arithmetic = dropout.means_over_masks(model, x)
    scaled = dropout.log_probs(model, x).exp()
    torch.testing.assert_close(geometric, scaled, atol=1e-12, rtol=0)
    assert (arithmetic - scaled).abs().max() > 0.02
    deep = network(2, p, units=4)
    assert (dropout.means_over_masks(deep, x)[0] - dropout.log_probs(deep, x).exp()).abs().max() > 1e-3


def test_every_mask_occurs_once_with_its_probability():
    model, x = network(2, 0.3, units=3), pixels(4)
    members, log_mask = dropout.every_mask(model, x)
    assert members.shape == (64, 4, 10)
    assert log_mask.exp().sum().item() == pytest.approx(1)
    assert log_mask[0].item() == pytest.approx(6 * math.log(0.3)), "all are dropped"
    torch.testing.assert_close(members[0, 0], model.output.bias.log_softmax(0).detach())
    sampled = dropout.dropout_passes(model, x.repeat(500, 1, 1, 1), 2)  # other masks for each copy
    exact = dropout.means_over_masks(model, x)[1]
    torch.testing.assert_close(sampled.exp().view(1000, 4, 10).mean(0), exact, atol=0.03, rtol=0)


def test_passes_are_those_of_the_classifier():
    x = pixels(5).float()
    model = MLPClassifier((1, 8, 8), 10, width=8, depth=1, mc_samples=6, mc_seed=3).eval()
    passes = dropout.dropout_passes(model.network, x, 6, seed=3)
    torch.testing.assert_close(dropout.mean_log_probs(passes), model.predictive(x).log_probabilities)
    assert not torch.equal(passes[0], passes[1])


def test_mean_of_more_members_has_no_larger_nll():
    generator = torch.Generator().manual_seed(0)
    members, y = torch.randn(8, 50, 10, generator=generator).mul(3).log_softmax(2), torch.arange(50) % 10
    found = [value for value, _ in dropout.by_size(members, y, [1, 2, 4, 8])]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(sum(dropout.nll(member, y) for member in members) / 8)
    assert found[-1] == pytest.approx(dropout.nll(members.exp().mean(0).log(), y))
    assert found[-1] < found[0] - 0.5


def test_calibration_error_is_the_gap_of_confidence_and_accuracy():
    log_p = torch.full((10, 2), 0.1).log()
    log_p[:, 0] = math.log(0.9)
    y = torch.tensor([0] * 6 + [1] * 4)
    assert dropout.calibration_error(log_p, y) == pytest.approx(0.3)
    assert dropout.accuracy(log_p, y) == pytest.approx(0.6)


def test_bootstrap_sample_has_two_thirds_of_the_images():
    batch = torch.arange(5000), torch.arange(5000)
    x, y = dropout.bootstrap(batch, seed=0)
    assert torch.equal(x, y) and len(x) == 5000
    assert len(x.unique()) / 5000 == pytest.approx(1 - math.exp(-1), abs=0.02)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_without_rescaling_sums_grow_by_the_same_factor_in_each_layer(p):
    model, x = network(3, p, bias=False), pixels(10)
    rescaled = dropout.layer_sums(model, x)
    with dropout.without_rescaling(model):
        forgotten = dropout.layer_sums(model, x)
    for place, (one, other) in enumerate(zip(rescaled, forgotten, strict=True)):
        torch.testing.assert_close(other, one / (1 - p) ** place)


def test_rescaled_sums_have_the_mean_of_training():
    model, x = network(1, 0.5, units=64), pixels(200)
    assert dropout.scales(model, x, 60, rescale=True) == pytest.approx([1, 1], abs=0.05)
    assert dropout.scales(model, x, 60, rescale=False) == pytest.approx([1, 2], rel=0.06)


@pytest.mark.slow
def test_dropout_passes_and_bagging_mend_what_few_images_spoil():
    batch, (x, y) = dropout.clothes(300)
    plain = dropout.ensemble([dropout.bootstrap(batch, k) for k in range(4)], x, 300)
    model = dropout.train(batch, 0.2, 0.5, 300)
    single, bag = (value for value, _ in dropout.by_size(plain, y, [1, 4]))
    scaled, passes = dropout.log_probs(model, x), dropout.mean_log_probs(dropout.dropout_passes(model, x, 16))
    assert bag < single - 0.2
    assert dropout.nll(passes, y) < dropout.nll(scaled, y) - 0.02 < single
    assert dropout.calibration_error(passes, y) < dropout.calibration_error(scaled, y)
