"""Parameter groups with and without weight decay."""

import torch
from torch import nn

from zoo.models.mlp.network import DropoutMLP
from zoo.models.resnet.network import CIFARResNet
from zoo.optim import parameter_groups


def names_of(group: dict, module: nn.Module) -> set[str]:
    of = {parameter: name for name, parameter in module.named_parameters()}
    return {of[parameter] for parameter in group["params"]}


def test_weight_decay_applies_to_matrices_and_not_to_biases_and_norms():
    network = DropoutMLP((5,), 3, width=4, depth=1, batch_norm=True)
    decayed, rest = parameter_groups(network)
    assert names_of(decayed, network) == {"hidden.0.weight", "output.weight"}
    assert names_of(rest, network) == {"hidden.1.weight", "hidden.1.bias", "output.bias"}
    assert "weight_decay" not in decayed, "the optimizer's default"
    assert rest["weight_decay"] == 0


def test_weight_decay_applies_to_kernels_and_every_parameter_is_in_one_group():
    network = CIFARResNet(depth=8, widths=(2, 3, 4))
    groups = parameter_groups(network)
    assert all("conv" in n or "stem.1" in n or n == "head.weight" for n in names_of(groups[0], network))
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(network.parameters()))


def test_frozen_parameters_and_empty_groups_are_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    network[0].requires_grad_(False)
    (group,) = parameter_groups(network)
    assert names_of(group, network) == {"1.weight"}
    (group,) = parameter_groups(nn.BatchNorm1d(3))
    assert group["weight_decay"] == 0


def test_a_step_with_zero_gradients_shrinks_the_matrix_and_not_the_bias():
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = torch.optim.AdamW(parameter_groups(layer), lr=0.1, weight_decay=0.5)
    (0 * layer(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight, weight * (1 - 0.1 * 0.5))
    assert layer.bias.equal(bias)
