"""Parameter groups with and without weight decay."""

import re

import pytest
import torch
from torch import nn

from zoo.models import SimpleViT, TorchvisionResNet
from zoo.models.mlp.network import DropoutMLP
from zoo.models.resnet.network import CIFARResNet
from zoo.optim import parameter_groups
from zoo.optim.groups import scale_rates


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


# A learning rate by layer


def scales(network: nn.Module, decay: float) -> dict[str, float]:
    of = {parameter: name for name, parameter in network.named_parameters()}
    return {of[p]: group["lr_scale"] for group in parameter_groups(network, decay) for p in group["params"]}


def test_a_layer_at_depth_d_from_the_head_has_the_rate_decay_to_the_d():
    network = SimpleViT((3, 8, 8), 10, layers=4, width=8, heads=2)
    for name, scale in scales(network, 0.75).items():
        block = re.search(r"blocks\.(\d+)", name)
        # The stem is below all blocks, the last normalization and the head above them (MAE, lrd.py).
        depth = 4 - int(block[1]) if block else 5 if name.startswith("stem") else 0
        assert scale == pytest.approx(0.75**depth), name


def test_blocks_of_a_resnet_are_layers_as_in_timm():
    network = TorchvisionResNet((3, 32, 32), 10)
    # timm's matcher for ResNets: the stem, then every block, then the head.
    order = ["backbone.conv1", "backbone.bn1"]
    expected = dict.fromkeys(order, 9) | {"head": 0}
    expected |= {f"backbone.layer{s}.{b}": 9 - 2 * (s - 1) - b - 1 for s in (1, 2, 3, 4) for b in (0, 1)}
    for name, scale in scales(network, 0.5).items():
        (depth,) = [depth for prefix, depth in expected.items() if name.startswith(f"{prefix}.")]
        assert scale == 0.5**depth, name


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
def test_layers_of_a_resnet_of_timm_are_those_of_timms_own_optimizers(name):
    timm, optim = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    network = timm.create_model(name, num_classes=3)
    of = {parameter: name for name, parameter in network.named_parameters()}
    groups = optim.param_groups_layer_decay(network, layer_decay=0.75)
    theirs = {of[p]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales(network, 0.75) == pytest.approx(theirs)


def test_without_lists_every_module_with_a_matrix_is_a_layer_and_norms_belong_to_the_one_before():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)

    found = scales(Plain(), 0.5)
    assert {name: found[name] for name in found if "weight" in name} == {
        "first.weight": 0.5, "norm.weight": 0.5, "second.weight": 1.0,
    }  # fmt: skip


def test_frozen_layers_keep_their_depth():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].requires_grad_(False)
    assert scales(network, 0.5) == {"0.weight": 0.25, "0.bias": 0.25, "2.weight": 1.0, "2.bias": 1.0}


def test_shared_parameters_are_listed_once():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    listed = [p for group in parameter_groups(network, 0.5) for p in group["params"]]
    assert len(listed) == len(set(listed)) == 3


def test_the_head_comes_first_and_rates_are_multiplied_into_the_optimizer():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(parameter_groups(network, 0.5), lr=0.2)
    scale_rates(optimizer.param_groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2, 0.1, 0.1]
    assert optimizer.param_groups[0]["params"] == [network[1].weight]


def test_a_decay_of_one_changes_nothing():
    network = DropoutMLP((5,), 3, width=4, depth=1)
    assert parameter_groups(network, 1.0) == parameter_groups(network)
    assert all("lr_scale" not in group for group in parameter_groups(network))
