"""Layers of a model, their gradient norms against closed forms, and the verdict on them."""

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.helpers.device import one_rank
from zoo.gradients import execution_order, first_last_ratio, gradient_profile, verdict

# Profiles


def test_gradient_in_a_linear_chain_is_the_product_of_the_other_weights():
    weights = [0.5, 2.0, -3.0, 0.1, 4.0]
    chain = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights))
    for layer, weight in zip(chain, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    chain(torch.tensor([[7.0]])).sum().backward()
    expected = [abs(7.0 * math.prod(weights) / weight) for weight in weights]
    names, norms = zip(*gradient_profile(chain), strict=True)
    assert names == ("0", "1", "2", "3", "4")
    assert norms == pytest.approx(expected)


def test_norms_of_tiny_gradients_do_not_underflow():
    layer = nn.Linear(10, 10, bias=False)
    layer.weight.grad = torch.full((10, 10), 1e-30)  # its square, 1e-60, underflows in float32
    assert gradient_profile(layer) == [("weight", pytest.approx(1e-29, rel=1e-6, abs=0))]


def test_norms_of_sharded_gradients_are_those_of_the_whole_tensors():
    layer, gradient = nn.Linear(3, 5, bias=False), torch.randn(5, 3, dtype=torch.float64).float()
    with one_rank():
        mesh = init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
        layer.weight.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        assert gradient_profile(layer) == [("weight", pytest.approx(gradient.double().norm().item(), rel=1e-6))]


class Reversed(nn.Module):
    """Registers its layers from the last to the first."""

    def __init__(self, depth=5):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, x):
        for layer in reversed(self.layers):
            x = layer(x).tanh()
        return x[:, :4]


def test_layers_are_ordered_by_execution_not_by_registration():
    network = Reversed()
    with execution_order(network) as order:
        network(torch.randn(3, 8)).sum().backward()
    assert [name for name, _ in gradient_profile(network)] == [f"layers.{k}" for k in range(5)]
    assert [name for name, _ in gradient_profile(network, order)] == [f"layers.{k}" for k in (4, 3, 2, 1, 0)]
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_every_module_with_weights_is_one_layer_and_tied_weights_count_once():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 20, bias=False)
            self.embedding = nn.Embedding(20, 8)
            self.position = nn.Parameter(torch.randn(1, 5, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.LayerNorm((5, 8))
            self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
            self.embedding.weight = self.head.weight

        def forward(self, tokens):
            x = self.embedding(tokens) + self.position
            x = self.norm(x + self.attention(x, x, x)[0])
            return self.head(self.spectral(x))

    network = Network()
    with execution_order(network) as order:
        network(torch.randint(20, (2, 5))).square().mean().backward()
    names = [name for name, _ in gradient_profile(network, order)]
    # The attention uses its output weights without calling their module; a tied weight belongs to its first owner.
    assert names == ["position", "attention.in_proj_weight", "attention.out_proj", "spectral", "head"]


def test_sparse_gradients_are_measured():
    embedding = nn.Embedding(100, 2, sparse=True)
    embedding(torch.tensor([3, 3, 5])).sum().backward()
    assert gradient_profile(embedding) == [("weight", pytest.approx(math.sqrt(2 * 2**2 + 2 * 1**2)))]


# The verdict


@pytest.mark.parametrize(
    ("first", "last", "state"),
    [
        (1e-9, 2.5e-3, "vanishing"),  # 18 layers without skips, torch's default initialization
        (1.4, 0.08, "healthy"),  # with batch norm
        (0.62, 0.13, "healthy"),  # with batch norm and skips
        (0.08, 0.17, "healthy"),  # with skips
        (0.0, 7e-3, "vanishing"),  # the same four of 54 layers
        (710, 0.28, "exploding"),
        (2.7, 0.20, "healthy"),
        (0.09, 0.38, "healthy"),
        (0.08, 0.18, "healthy"),  # the same four of 54 layers, He's initialization
        (170, 0.1, "exploding"),
        (0.66, 0.07, "healthy"),
        (8e4, 3e5, "exploding"),
    ],
)
def test_verdict_on_profiles_of_trained_networks(first, last, state):
    gradients = [first] * 5 + [math.sqrt(first * last)] * 8 + [last] * 5
    assert verdict(gradients, weights=[5.0] * 18).state == state


def test_verdict_is_one_line_with_the_number_and_the_thresholds():
    healthy = verdict([0.31, 0.5])
    assert str(healthy) == (
        "healthy: the first layers' gradient is 0.62 of the last's (vanishing below 0.01, exploding above 100)"
    )
    assert str(verdict([1e-3, 0.5])) == "vanishing: the first layers' gradient is 0.002 of the last's (below 0.01)"
    assert str(verdict([60, 0.5])) == "exploding: the first layers' gradient is 120 times the last's (above 100)"
    assert verdict([1e-3, 0.5], vanishing=1e-3).state == "healthy"
    assert verdict([60, 0.5], exploding=200).state == "healthy"


def test_verdict_on_nonfinite_zero_and_very_large_gradients():
    assert str(verdict([1.0, math.inf, 2.0])) == "exploding: the gradient is not finite in 1 of 3 layers"
    assert str(verdict([0.0, 0.0])) == "vanishing: the gradient is zero in every layer"
    assert str(verdict([3e4, 4e4], [3.0, 4.0])) == (
        "exploding: the gradient is 10000 times as long as the weights (above 1000)"
    )
    assert verdict([3e4, 4e4], [3e2, 4e2]).state == "healthy"


def test_first_last_ratio_ignores_the_outermost_layers_and_single_outliers():
    assert first_last_ratio([99, 2, 4, 99]) == 0.5
    assert first_last_ratio([99, *[2, 2, 700], *[9] * 6, *[4, 1e-9, 4], 99]) == 0.5, "medians of quarters of twelve"
    assert first_last_ratio([1, 2, 4]) == 0.25
    assert first_last_ratio([3.0, 0.0, 0.0, 0.0, 0.0, 6.0]) == 0.5, "blocks that start as the identity"
    assert math.isnan(first_last_ratio([]))
