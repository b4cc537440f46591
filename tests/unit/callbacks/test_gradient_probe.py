"""What a probe of one batch measures: dead ReLUs, other precisions, and compiled networks."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from tests.unit.callbacks.test_gradient_flow import (
    Classifier,
    Spy,
    count_hooks,
    fit,
    gradients_of,
    mlp,
    values_of,
)
from zoo.callbacks import GradientFlow

# Dead ReLUs


def kill_units(layer, units):
    """Sets biases so that the first units are zero for every input, and the others positive."""
    with torch.no_grad():
        layer.weight.mul_(1e-3)
        layer.bias.fill_(1e3)
        layer.bias[:units] = -1e3
    return layer


@pytest.mark.parametrize("rectifier", [nn.ReLU, lambda: nn.ReLU(inplace=True), nn.ReLU6, lambda: nn.LeakyReLU(0.0)])
def test_fraction_of_dead_relus_is_exact(rectifier):
    flow = GradientFlow()
    network = nn.Sequential(kill_units(nn.Linear(8, 10), 3), rectifier(), kill_units(nn.Linear(10, 6), 1), rectifier())
    fit(Classifier(nn.Sequential(network, nn.Linear(6, 4))), flow, max_steps=1)
    assert flow.measurements[0].dead_relus == pytest.approx(4 / 16)


def test_units_of_convolutions_are_channels_and_those_of_sequences_the_last_dimension():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(kill_units(nn.Conv2d(1, 10, 3), 4), nn.ReLU())
            self.linear = nn.Sequential(kill_units(nn.Linear(2, 7), 2), nn.ReLU())
            self.head = nn.Linear(7, 4)

        def forward(self, x):  # (N, 1, 4, 4)
            x = self.conv(x)  # (N, 10, 2, 2)
            return self.head(self.linear(x.flatten(1, 2)).mean(1))  # (N, 20, 7) inside

    flow = GradientFlow()
    fit(Classifier(Network(), input_shape=(1, 4, 4)), flow, max_steps=1)
    assert flow.measurements[0].dead_relus == pytest.approx(6 / 17)


def test_a_unit_active_for_one_sample_is_not_dead():
    network = nn.Sequential(nn.Linear(8, 2, bias=False), nn.ReLU(), nn.Linear(2, 4))
    nn.init.zeros_(network[0].weight)
    network[0].weight.data[0, 0] = 1.0
    model = Classifier(network)
    model.data.tensors[0][:, 0] = -1.0
    model.data.tensors[0][5, 0] = 1.0
    flow = GradientFlow()
    fit(model, flow, max_steps=1)
    assert flow.measurements[0].dead_relus == 0.5


def test_without_relus_there_is_no_dead_fraction():
    flow = GradientFlow()
    fit(Classifier(mlp(3, nn.LeakyReLU)), flow, max_steps=1)
    assert math.isnan(flow.measurements[0].dead_relus)
    assert set(flow.measurements[0].scalars()) == {"first_last_ratio", "update_ratio"}


# Precision and compilation


def test_norms_in_bfloat16_agree_with_float32():
    values = []
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        seed_everything(0, verbose=False)
        flow = GradientFlow()
        fit(Classifier(mlp(4, nn.ReLU)), flow, max_steps=1, precision=precision)
        values.append(values_of(flow.measurements[0])[:, :2])
    torch.testing.assert_close(values[1], values[0], rtol=0.1, atol=1e-3)
    torch.testing.assert_close(values[2], values[0], rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled before the step", "unscaled in the step"])
def test_gradient_norms_exclude_the_loss_scale(fused):
    class Scaled(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr, fused=fused)

    values = []
    for scale in (None, 4096.0):
        seed_everything(0, verbose=False)
        flow = GradientFlow(every_n_steps=1)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        plugins = [MixedPrecision("16-mixed" if scale else "bf16-mixed", "cpu", scaler)]
        fit(Classifier(mlp(4, nn.ReLU)) if scale is None else Scaled(mlp(4, nn.ReLU)), flow, plugins=plugins)
        assert [m.step for m in flow.measurements] == [0, 1, 2, 3]
        values.append(torch.stack([values_of(m) for m in flow.measurements]))
    torch.testing.assert_close(values[1], values[0], rtol=0.1, atol=1e-3)


def test_steps_skipped_by_the_grad_scaler_are_not_measured():
    class Overflowing(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.inf if batch_idx < 2 else loss

    flow = GradientFlow(every_n_steps=10)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    model = Overflowing(mlp(3, nn.ReLU))
    trainer = fit(model, flow, plugins=[plugin])
    assert [m.step for m in flow.measurements] == [2]
    assert values_of(flow.measurements[0]).isfinite().all()
    assert count_hooks(model, trainer) == 0


def test_nonfinite_gradients_in_float32_are_reported_as_exploding():
    class Overflowing(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * math.nan

    flow = GradientFlow()
    fit(Overflowing(mlp(3, nn.ReLU)), flow, max_steps=1)
    assert flow.verdict == "exploding: the gradient is not finite in 3 of 3 layers"


@pytest.mark.parametrize("way", ["network.compile()", "compile(network)", "compile(model)"])
def test_compiled_networks_are_measured_without_hooks(way):
    flow, spy = GradientFlow(every_n_steps=1), Spy()
    model = Classifier(mlp(3, nn.ReLU))
    if way == "network.compile()":
        model.network.compile(backend="eager")
    elif way == "compile(network)":
        model.network = torch.compile(model.network, backend="eager")
    fit(torch.compile(model, backend="eager") if way == "compile(model)" else model, flow, spy)
    assert [m.layers for m in flow.measurements] == [("0", "2", "4")] * 4
    assert all(min(gradients_of(m).values()) > 0 for m in flow.measurements)
    assert spy.hooks == [1] * 4, "the optimizer's, for the update ratio"
    assert math.isnan(flow.measurements[0].dead_relus)
