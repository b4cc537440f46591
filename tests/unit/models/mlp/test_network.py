"""The dropout MLP's network: where dropout is, and its formula in eval mode."""

import pytest
import torch
from torch import nn

from zoo import MLPClassifier
from zoo.models.mlp.network import DropoutMLP


@pytest.mark.parametrize("batch_norm", [False, True])
def test_dropout_is_on_the_input_and_after_each_activation_and_not_on_the_output(batch_norm):
    network = DropoutMLP((12,), 5, width=7, depth=3, input_dropout=0.1, hidden_dropout=0.4, batch_norm=batch_norm)
    calls: list[nn.Module] = []
    leaves = [module for module in network.modules() if not list(module.children())]
    for module in leaves:
        module.register_forward_hook(lambda module, x, y: calls.append(module))
    network(torch.randn(4, 12))
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] if batch_norm else [nn.Linear, nn.ReLU, nn.Dropout]
    assert [type(module) for module in calls] == [nn.Dropout, *hidden * 3, nn.Linear]
    assert [module.p for module in calls if isinstance(module, nn.Dropout)] == [0.1, 0.4, 0.4, 0.4]
    linear = [module for module in calls if isinstance(module, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(7, 12), (7, 7), (7, 7), (5, 7)]
    assert [m.bias is None for m in linear] == [batch_norm] * 3 + [False], "batch norm has a bias of its own"


def test_units_are_dropped_at_their_rates_and_the_others_scaled_up():
    torch.manual_seed(0)
    network = DropoutMLP((2000,), 3, width=3000, depth=1, input_dropout=0.2, hidden_dropout=0.5)
    seen = {}
    network.hidden[0].register_forward_pre_hook(lambda module, args: seen.update(inputs=args[0]))
    network.output.register_forward_pre_hook(lambda module, args: seen.update(hidden=args[0]))
    network.hidden[1].register_forward_hook(lambda module, x, y: seen.update(relu=y))
    network(torch.ones(8, 2000))
    assert set(seen["inputs"].unique().tolist()) == {0.0, 1.25}
    assert (seen["inputs"] == 0).float().mean().item() == pytest.approx(0.2, abs=4 * 0.4 / 16_000**0.5)
    alive = seen["relu"] > 0
    ratio = seen["hidden"][alive] / seen["relu"][alive]
    assert set(ratio.unique().tolist()) == {0.0, 2.0}
    assert (ratio == 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / len(ratio) ** 0.5)


def test_pixels_are_in_0_to_1_so_that_dropped_ones_are_black():
    seen = []
    model = MLPClassifier((1, 8, 8), 10, width=4, depth=1, input_dropout=0.5)
    model.network.input_dropout.register_forward_hook(lambda module, x, y: seen.append((x[0], y)))
    white, black = torch.ones(3, 1, 8, 8), -torch.ones(3, 1, 8, 8)
    model.train()
    model.network(white)
    model.network(black)
    (bright, masked), (dark, _) = seen
    assert bright.eq(1).all() and dark.eq(0).all()
    assert set(masked.unique().tolist()) == {0.0, 2.0}, "a dropped white pixel equals a black one"


def test_points_are_not_rescaled():
    model = MLPClassifier((2,), 3, width=4, depth=1).eval()
    seen = []
    model.network.hidden[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(5, 2)
    model(x)
    assert seen[0].equal(x)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_in_eval_mode_the_network_equals_its_formula(batch_norm):
    torch.manual_seed(0)
    model = MLPClassifier((3, 4, 4), 6, width=9, depth=2, batch_norm=batch_norm)
    norms = [module for module in model.network.hidden if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2.0)
    x = torch.rand(7, 3, 4, 4) * 2 - 1
    h = (x.double().reshape(7, 48) + 1) / 2
    layers = [module for module in model.network.hidden if isinstance(module, nn.Linear)]
    for index, layer in enumerate(layers):
        h = h @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())
        if batch_norm:
            norm = norms[index]
            h = (h - norm.running_mean) / (norm.running_var.double() + 1e-5).sqrt() * norm.weight + norm.bias
        h = h.clamp_min(0)
    expected = h @ model.network.output.weight.double().T + model.network.output.bias.double()
    torch.testing.assert_close(model.eval()(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_limit_norms_rescales_vectors_above_the_limit_and_no_others():
    network = DropoutMLP((3,), 2, width=2, depth=1)
    with torch.no_grad():
        network.hidden[0].weight.copy_(torch.tensor([[3.0, 0.0, 4.0], [0.3, 0.4, 0.0]]))
        network.output.weight.fill_(9.0)
        network.hidden[0].bias.fill_(9.0)
    network.limit_norms(2.0)
    torch.testing.assert_close(network.hidden[0].weight.detach(), torch.tensor([[1.2, 0.0, 1.6], [0.3, 0.4, 0.0]]))
    assert network.output.weight.eq(9).all() and network.hidden[0].bias.eq(9).all()
