"""Gradient norms by depth against closed forms, the verdict on them, and the callback that measures during training."""

import csv
import math
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo import GAN
from zoo.callbacks import GradientFlow
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.gradients import execution_order, first_last_ratio, gradient_profile, verdict
from zoo.plotting.gradient_flow import plot_gradient_flow


class Classifier(LightningModule):
    """Any network, trained with SGD on batches of 16 random vectors of 8 numbers."""

    def __init__(self, network, lr=0.1, samples=64, input_shape=(8,)):
        super().__init__()
        self.network = network
        self.lr = lr
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(samples, *input_shape, generator=generator)
        self.data = TensorDataset(x, torch.randint(4, (samples,), generator=generator))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=16)


def mlp(depth, activation, width=16):
    layers = [nn.Linear(8, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def fit(model, *callbacks, ckpt_path=None, data=None, **options):
    warnings.filterwarnings("ignore")
    defaults = {"max_steps": 4, "max_epochs": -1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=list(callbacks), **(defaults | quiet | options))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def gradients_of(measurement):
    return {name: row.gradient for name, row in zip(measurement.layers, measurement.rows, strict=True)}


def values_of(measurement):
    """Gradient norm, weight norm and update ratio of each layer, (layers, 3)."""
    return torch.tensor(measurement.rows, dtype=torch.float64)


def table(folder):
    with (folder / "gradient_flow.csv").open() as file:
        return list(csv.DictReader(file))


class Spy(Callback):
    """Keeps a copy of the gradients before each optimizer step, and the number of hooks during each batch."""

    def __init__(self):
        self.gradients, self.hooks = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})
        self.hooks.append(count_hooks(pl_module, trainer))


def count_hooks(module, trainer):
    on_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    return on_modules + sum(len(optimizer._optimizer_step_post_hooks) for optimizer in trainer.optimizers)


# Profiles


def test_gradients_of_a_chain_are_the_products_of_the_other_weights():
    weights = [0.5, 2.0, -3.0, 0.1, 4.0]
    chain = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights))
    for layer, weight in zip(chain, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    chain(torch.tensor([[7.0]])).sum().backward()
    expected = [abs(7.0 * math.prod(weights) / weight) for weight in weights]
    names, norms = zip(*gradient_profile(chain), strict=True)
    assert names == ("0", "1", "2", "3", "4")
    assert norms == pytest.approx(expected)


def test_tiny_gradients_are_not_taken_for_zero():
    layer = nn.Linear(10, 10, bias=False)
    layer.weight.grad = torch.full((10, 10), 1e-30)  # the square, 1e-60, is no single-precision number
    assert gradient_profile(layer) == [("weight", pytest.approx(1e-29, rel=1e-6, abs=0))]


class Reversed(nn.Module):
    """Its layers are registered from the last to the first."""

    def __init__(self, depth=5):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, x):
        for layer in reversed(self.layers):
            x = layer(x).tanh()
        return x[:, :4]


def test_depth_is_the_order_of_execution_not_of_registration():
    network = Reversed()
    with execution_order(network) as order:
        network(torch.randn(3, 8)).sum().backward()
    assert [name for name, _ in gradient_profile(network)] == [f"layers.{k}" for k in range(5)]
    assert [name for name, _ in gradient_profile(network, order)] == [f"layers.{k}" for k in (4, 3, 2, 1, 0)]
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_layers_are_what_owns_weights_each_once():
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
    # The attention's output weights are used without calling their module; the tied weight belongs to the first owner.
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
def test_verdict_on_measured_networks(first, last, state):
    gradients = [first] * 5 + [math.sqrt(first * last)] * 8 + [last] * 5
    assert verdict(gradients, weights=[5.0] * 18).state == state


def test_verdict_is_one_line_with_its_number_and_its_thresholds():
    healthy = verdict([0.31, 0.5])
    assert str(healthy) == (
        "healthy: the first layers' gradient is 0.62 of the last's (vanishing below 0.01, exploding above 100)"
    )
    assert str(verdict([1e-3, 0.5])) == "vanishing: the first layers' gradient is 0.002 of the last's (below 0.01)"
    assert str(verdict([60, 0.5])) == "exploding: the first layers' gradient is 120 times the last's (above 100)"
    assert verdict([1e-3, 0.5], vanishing=1e-3).state == "healthy"
    assert verdict([60, 0.5], exploding=200).state == "healthy"


def test_verdict_on_what_is_not_finite_zero_or_overwhelming():
    assert str(verdict([1.0, math.inf, 2.0])) == "exploding: the gradient is not finite in 1 of 3 layers"
    assert str(verdict([0.0, 0.0])) == "vanishing: the gradient is zero in every layer"
    assert str(verdict([3e4, 4e4], [3.0, 4.0])) == (
        "exploding: the gradient is 10000 times as long as the weights (above 1000)"
    )
    assert verdict([3e4, 4e4], [3e2, 4e2]).state == "healthy"


def test_ratio_leaves_out_the_outermost_layers_and_single_outliers():
    assert first_last_ratio([99, 2, 4, 99]) == 0.5
    assert first_last_ratio([99, *[2, 2, 700], *[9] * 6, *[4, 1e-9, 4], 99]) == 0.5, "medians of quarters of twelve"
    assert first_last_ratio([1, 2, 4]) == 0.25
    assert first_last_ratio([3.0, 0.0, 0.0, 0.0, 0.0, 6.0]) == 0.5, "blocks that start as the identity"
    assert math.isnan(first_last_ratio([]))


def normalized_mlp(depth):
    """Batch norm without skips: each layer multiplies the gradient by about 1.2 (Yang et al. 2019)."""
    layers = [nn.Linear(8, 32)]
    for _ in range(depth - 2):
        layers += [nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.Linear(32, 4))


def large_chain(depth):
    """Weights of 3 times the identity, so that each layer makes the signal and the gradient three times as large."""
    layers = [nn.Linear(8, 8, bias=False) for _ in range(depth)]
    for layer in layers:
        layer.weight.data.copy_(3 * torch.eye(8))
    return nn.Sequential(*layers, nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("network", "state", "reason"),
    [
        (lambda: mlp(30, nn.Sigmoid), "vanishing", "of the last's"),
        (lambda: mlp(2, nn.Sigmoid), "healthy", "of the last's"),
        (lambda: normalized_mlp(60), "exploding", "times the last's"),
        (lambda: normalized_mlp(4), "healthy", "times the last's|of the last's"),
        (lambda: large_chain(20), "exploding", "times as long as the weights"),
    ],
    ids=["30 sigmoids", "2 sigmoids", "60 layers with batch norm", "4 layers with batch norm", "large weights"],
)
def test_verdict_in_training(network, state, reason):
    seed_everything(0, verbose=False)
    flow = GradientFlow()
    fit(Classifier(network(), samples=16), flow, max_steps=1)
    assert flow.verdicts["network"].state == state
    assert re.match(f"{state}: .* ({reason})", flow.verdict)


# During training


def test_update_ratio_of_gradient_descent_is_the_step_by_the_weight():
    flow = GradientFlow(every_n_steps=2)
    fit(Classifier(mlp(4, nn.ReLU), lr=0.1), flow)
    assert [m.step for m in flow.measurements] == [0, 2]
    for measurement in flow.measurements:
        gradient, weight, update = values_of(measurement).T
        torch.testing.assert_close(update, 0.1 * gradient / weight, rtol=1e-4, atol=0)


def test_update_ratio_is_that_of_the_real_optimizer():
    class WithAdam(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    flow = GradientFlow()
    model = WithAdam(mlp(3, nn.Tanh))
    norms = [model.network[k].weight.norm().item() for k in (0, 2, 4)]
    sizes = [model.network[k].weight.numel() for k in (0, 2, 4)]
    fit(model, flow, max_steps=1)
    # The first step of Adam moves every weight by the learning rate.
    expected = [1e-3 * math.sqrt(size) / norm for size, norm in zip(sizes, norms, strict=True)]
    assert values_of(flow.measurements[0])[:, 2].tolist() == pytest.approx(expected, rel=1e-3)


def test_gradients_are_those_of_the_step_and_norms_those_of_the_weights_before_it():
    flow, spy = GradientFlow(), Spy()
    model = Classifier(Reversed())
    weights = {f"layers.{k}": layer.weight.norm().item() for k, layer in enumerate(model.network.layers)}
    fit(model, flow, spy, max_steps=1)
    (measurement,) = flow.measurements
    assert measurement.layers == tuple(f"layers.{k}" for k in (4, 3, 2, 1, 0)), "in the order of execution"
    expected = {name: spy.gradients[0][f"network.{name}.weight"].norm().item() for name in measurement.layers}
    assert gradients_of(measurement) == pytest.approx(expected)
    assert values_of(measurement)[:, 1].tolist() == pytest.approx([weights[name] for name in measurement.layers])


def test_gradients_are_measured_before_clipping():
    free, clipped = GradientFlow(), GradientFlow()
    for flow, limit in ((free, None), (clipped, 1e-6)):
        seed_everything(0, verbose=False)
        fit(Classifier(mlp(3, nn.ReLU)), flow, max_steps=1, gradient_clip_val=limit)
    assert gradients_of(clipped.measurements[0]) == gradients_of(free.measurements[0])
    assert values_of(clipped.measurements[0])[:, 2].max() < 1e-6, "the update is the clipped one"


def test_accumulated_gradients_are_those_of_the_whole_batch():
    values = []
    for batch_size, accumulate in ((16, 4), (64, 1)):
        seed_everything(0, verbose=False)
        model, flow = Classifier(mlp(3, nn.Tanh)), GradientFlow(every_n_steps=1)
        model.train_dataloader = lambda n=batch_size, data=model.data: DataLoader(data, batch_size=n)
        fit(model, flow, max_steps=3, accumulate_grad_batches=accumulate)
        assert [m.step for m in flow.measurements] == [0, 1, 2]
        values.append(torch.stack([values_of(m) for m in flow.measurements]))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-7)


def test_period_is_kept_and_no_hook_is_left_between():
    flow, spy = GradientFlow(every_n_steps=3), Spy()
    model = Classifier(mlp(4, nn.ReLU))
    trainer = fit(model, flow, spy, max_steps=8)
    assert [m.step for m in flow.measurements] == [0, 3, 6]
    # The optimizer's step and three ReLUs; at the first step the order of four layers, too.
    assert spy.hooks == [8, 0, 0, 4, 0, 0, 4, 0]
    assert count_hooks(model, trainer) == 0


def test_no_hook_is_left_after_an_exception():
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("on purpose")

    model = Failing(mlp(3, nn.ReLU))
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, GradientFlow())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_measurement_takes_one_transfer(monkeypatch):
    transfers = []

    class Counted(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            transfers.append([])

    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counting(tensor, *args, name=name, original=original, **options):
            transfers[-1].append(name)
            return original(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counting)
    transfers.append([])
    with_flow, without = [], []
    for counts, callbacks in ((with_flow, [GradientFlow(every_n_steps=2)]), (without, [])):
        transfers[:] = [[]]
        fit(Classifier(mlp(5, nn.ReLU)), *callbacks, Counted())
        counts += [len(calls) for calls in transfers[:4]]
    assert [a - b for a, b in zip(with_flow, without, strict=True)] == [1, 0, 1, 0]


def test_training_is_the_same_to_the_last_bit(tmp_path):
    weights = []
    for callbacks in ([], [GradientFlow(every_n_steps=1)]):
        seed_everything(0, verbose=False)
        model = Classifier(nn.Sequential(mlp(4, nn.ReLU), nn.Dropout(0.5)))
        logger = CSVLogger(tmp_path, name=str(len(callbacks)))
        fit(model, *callbacks, max_steps=6, logger=logger)
        weights.append([p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()])
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


# Dead ReLUs


def kill(layer, units):
    """Biases that hold the first units at zero whatever comes in, and the others above it."""
    with torch.no_grad():
        layer.bias.fill_(1e3)
        layer.bias[:units] = -1e3
    return layer


@pytest.mark.parametrize("rectifier", [nn.ReLU, lambda: nn.ReLU(inplace=True), nn.ReLU6, lambda: nn.LeakyReLU(0.0)])
def test_share_of_dead_relus_is_exact(rectifier):
    flow = GradientFlow()
    network = nn.Sequential(kill(nn.Linear(8, 10), 3), rectifier(), kill(nn.Linear(10, 6), 1), rectifier())
    fit(Classifier(nn.Sequential(network, nn.Linear(6, 4))), flow, max_steps=1)
    assert flow.measurements[0].dead_relus == pytest.approx(4 / 16)


def test_units_of_convolutions_are_channels_and_those_of_sequences_the_last_dimension():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(kill(nn.Conv2d(1, 10, 3), 4), nn.ReLU())
            self.linear = nn.Sequential(kill(nn.Linear(2, 7), 2), nn.ReLU())
            self.head = nn.Linear(7, 4)

        def forward(self, x):  # (N, 1, 4, 4)
            x = self.conv(x)  # (N, 10, 2, 2)
            return self.head(self.linear(x.flatten(1, 2)).mean(1))  # (N, 20, 7) inside

    flow = GradientFlow()
    fit(Classifier(Network(), input_shape=(1, 4, 4)), flow, max_steps=1)
    assert flow.measurements[0].dead_relus == pytest.approx(6 / 17)


def test_a_unit_that_lives_for_one_sample_is_not_dead():
    network = nn.Sequential(nn.Linear(8, 2, bias=False), nn.ReLU(), nn.Linear(2, 4))
    nn.init.zeros_(network[0].weight)
    network[0].weight.data[0, 0] = 1.0
    model = Classifier(network)
    model.data.tensors[0][:, 0] = -1.0
    model.data.tensors[0][5, 0] = 1.0
    flow = GradientFlow()
    fit(model, flow, max_steps=1)
    assert flow.measurements[0].dead_relus == 0.5


def test_without_rectifiers_there_is_no_share():
    flow = GradientFlow()
    fit(Classifier(mlp(3, nn.LeakyReLU)), flow, max_steps=1)
    assert math.isnan(flow.measurements[0].dead_relus)
    assert set(flow.measurements[0].scalars()) == {"first_last_ratio", "update_ratio"}


# Precision, compilation


def test_bfloat16_gives_the_same_within_its_precision():
    values = []
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        seed_everything(0, verbose=False)
        flow = GradientFlow()
        fit(Classifier(mlp(4, nn.ReLU)), flow, max_steps=1, precision=precision)
        values.append(values_of(flow.measurements[0])[:, :2])
    torch.testing.assert_close(values[1], values[0], rtol=0.1, atol=1e-3)
    torch.testing.assert_close(values[2], values[0], rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled before the step", "unscaled in the step"])
def test_gradients_of_16_bit_training_are_without_its_scale(fused):
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


def test_steps_that_16_bit_training_skips_are_not_measured():
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


def test_gradients_that_are_not_finite_are_a_finding_in_full_precision():
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


# Several networks


def test_a_gan_has_a_profile_of_each_network(tmp_path):
    flow = GradientFlow(every_n_steps=4)
    model = GAN(input_shape=(1, 8, 8), width=16)
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"max_steps": 6, "logger": logger, "limit_val_batches": 0, "log_every_n_steps": 1}
    fit(model, flow, data=Digits(), **options)
    assert [(m.step, m.network) for m in flow.measurements] == [
        (step, name) for step in (0, 4) for name in ("discriminator", "generator")
    ], "the copy that averages the generator has no gradient"
    layers = {m.network: m.layers for m in flow.measurements}
    assert layers == {
        "generator": ("hidden.0", "hidden.2", "out"),
        "discriminator": ("hidden.0", "hidden.2", "head.linear"),
    }
    assert flow.verdict.startswith("discriminator healthy: ") and "; generator healthy: " in flow.verdict
    assert not math.isnan(flow.measurements[1].dead_relus), "LeakyReLU with slope 0 is a ReLU"
    for measurement in flow.measurements:
        assert (values_of(measurement) > 0).all()
    with (tmp_path / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    for network in ("generator", "discriminator"):
        rows = [row for row in logged if row.get(f"gradient_flow/{network}/first_last_ratio")]
        assert [row["step"] for row in rows] == ["0", "4"]
        assert float(rows[0][f"gradient_flow/{network}/update_ratio"]) > 0


def test_gradients_of_each_network_are_those_of_its_own_step():
    flow, spy = GradientFlow(), Spy()
    fit(GAN(input_shape=(1, 8, 8), width=16), flow, spy, data=Digits(), max_steps=1, limit_val_batches=0)
    for measurement, gradients in zip(flow.measurements, spy.gradients, strict=True):
        expected = {
            name: gradients[f"{measurement.network}.{name}.weight"].norm().item() for name in measurement.layers
        }
        assert gradients_of(measurement) == pytest.approx(expected)


def test_a_network_that_steps_rarely_is_measured_once_in_each_period():
    flow = GradientFlow(every_n_steps=4)
    fit(GAN(input_shape=(1, 8, 8), width=16, n_critic=3), flow, data=Digits(), max_steps=12, limit_val_batches=0)
    steps = {name: [m.step for m in flow.measurements if m.network == name] for name in flow.verdicts}
    assert steps == {"discriminator": [0, 4, 8], "generator": [2, 5, 8]}


class TwoParts(Classifier):
    def __init__(self, frozen=False):
        super().__init__(nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)
        self.average = nn.Linear(8, 4).requires_grad_(False)
        self.network.requires_grad_(not frozen)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.head(self.network(x)), y)


def test_children_that_share_an_optimizer_are_one_network():
    flow = GradientFlow()
    fit(TwoParts(), flow, max_steps=1)
    assert {m.network: m.layers for m in flow.measurements} == {"model": ("network", "head")}


def test_what_is_frozen_is_left_out():
    flow = GradientFlow()
    fit(TwoParts(frozen=True), flow, max_steps=1)
    assert {m.network: m.layers for m in flow.measurements} == {"head": ("head",)}


def test_a_network_with_two_optimizers_is_one_profile():
    class Split(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            first, *others = (layer.parameters() for layer in self.network if isinstance(layer, nn.Linear))
            return [
                torch.optim.SGD(first, lr=0.1),
                torch.optim.Adam([p for other in others for p in other], lr=0.1),
            ]

    flow = GradientFlow()
    fit(Split(mlp(3, nn.ReLU)), flow, max_steps=1)
    assert [m.layers for m in flow.measurements] == [("0", "2", "4")]
    assert values_of(flow.measurements[0]).isfinite().all()


# What is left


class Validated(Classifier):
    def validation_step(self, batch, batch_idx):
        pass

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=64)


class Gallery(CSVLogger):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.pictures = []

    def log_image(self, key, images, step=None):
        self.pictures.append((key, images[0].ndim, step))


def test_table_pictures_and_scalars_are_in_the_run(tmp_path):
    logger = Gallery(tmp_path, name="", version="")
    fit(Classifier(mlp(3, nn.ReLU)), GradientFlow(every_n_steps=2), logger=logger)
    rows = table(tmp_path)
    assert list(rows[0]) == ["step", "network", "depth", "layer", "gradient_norm", "weight_norm", "update_ratio"]
    assert [(row["step"], row["depth"], row["layer"]) for row in rows] == [
        (step, depth, layer) for step in "02" for depth, layer in (("1", "0"), ("2", "2"), ("3", "4"))
    ]
    assert all(float(row[name]) > 0 for row in rows for name in ("gradient_norm", "weight_norm", "update_ratio"))
    assert np.asarray(Image.open(tmp_path / "gradient_flow_network.png")).std() > 20
    assert logger.pictures == [("gradient_flow/network", 3, 4)]
    with (tmp_path / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["gradient_flow/network/dead_relus"]]
    assert [row["step"] for row in logged] == ["0", "2"]


@pytest.mark.parametrize(("every_seconds", "pictures"), [(0, 4), (1e6, 2)])
def test_pictures_are_drawn_at_validations_but_not_more_often_than_told(every_seconds, pictures, tmp_path, monkeypatch):
    drawn = []

    def draw(*args):
        drawn.append(args)
        return np.zeros((2, 2, 3), dtype=np.uint8)

    monkeypatch.setattr("zoo.callbacks.gradient_flow.plot_gradient_flow", draw)
    options = {"val_check_interval": 2, "logger": CSVLogger(tmp_path, name="", version=""), "max_steps": 6}
    fit(Validated(mlp(3, nn.ReLU)), GradientFlow(every_seconds=every_seconds), **options)
    assert len(drawn) == pictures, "after the first of three validations, the others where it is time, and at the end"


def test_verdict_is_printed_first_last_and_when_it_changes(monkeypatch):
    class Fading(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 2:
                self.network[2].weight.data.mul_(1e-6)

    said = []
    monkeypatch.setattr("zoo.callbacks.gradient_flow.rank_zero_info", said.append)
    torch.manual_seed(0)
    fit(Fading(mlp(3, nn.Tanh), lr=0.0), GradientFlow(every_n_steps=1), max_steps=5)
    assert [line.split(":")[0] for line in said] == [
        "Gradient flow in network at step 0 is healthy",
        "Gradient flow in network at step 2 is vanishing",
        "Gradient flow in network at step 4 is vanishing",
    ]


def test_without_a_logger_the_verdict_is_printed_and_nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    monkeypatch.setattr("zoo.callbacks.gradient_flow.rank_zero_info", said.append)
    flow = GradientFlow()
    fit(Classifier(mlp(3, nn.ReLU)), flow)
    assert said == [f"Gradient flow in network at step 0 is {flow.verdict}"]
    assert list(tmp_path.rglob("*")) == []


def test_resuming_gives_the_table_of_a_run_in_one_go(tmp_path):
    def run(folder, **options):
        seed_everything(0, verbose=False)
        keep = ModelCheckpoint(tmp_path / "checkpoints", "{step}", every_n_train_steps=5, save_top_k=-1)
        logger = CSVLogger(tmp_path / folder, name="", version="")
        model = Classifier(mlp(3, nn.ReLU), samples=16)
        fit(model, GradientFlow(every_n_steps=2), keep, logger=logger, enable_checkpointing=True, **options)
        return table(tmp_path / folder)

    whole = run("whole", max_steps=10)
    assert [row["step"] for row in whole] == [str(step) for step in (0, 2, 4, 6, 8) for _ in range(3)]
    assert run("resumed", max_steps=10, ckpt_path=tmp_path / "checkpoints" / "step=5.ckpt") == whole
    assert run("whole", max_steps=12, ckpt_path=tmp_path / "checkpoints" / "step=5.ckpt")[:15] == whole
    assert [path.name for path in (tmp_path / "whole").glob("*flow*.csv")] == ["gradient_flow.csv"], "the same table"


def test_a_table_of_another_run_stays_as_it_was(tmp_path):
    def run(seed, **options):
        seed_everything(seed, verbose=False)
        keep = ModelCheckpoint(tmp_path / f"{seed}", "{step}", every_n_train_steps=5, save_top_k=-1)
        logger = CSVLogger(tmp_path, name="", version="")
        model = Classifier(mlp(3, nn.ReLU), samples=16)
        fit(model, GradientFlow(every_n_steps=2), keep, logger=logger, enable_checkpointing=True, **options)

    run(0, max_steps=10)
    first = table(tmp_path)
    run(1, max_steps=10)
    run(1, max_steps=10, ckpt_path=tmp_path / "1" / "step=5.ckpt")
    assert table(tmp_path) == first
    for number in (1, 2):
        with (tmp_path / f"gradient_flow-{number}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(first), "new ones are beside it"
    assert (tmp_path / "gradient_flow-1_network.png").is_file()


def test_checkpoints_load_as_plain_values(tmp_path):
    keep = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    fit(Classifier(mlp(3, nn.ReLU)), GradientFlow(), keep, enable_checkpointing=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["GradientFlow"]
    assert state["measurements"][0]["layers"] == ("0", "2", "4")


def test_a_second_fit_starts_anew():
    flow = GradientFlow()
    for depth in (3, 2):
        fit(Classifier(mlp(depth, nn.ReLU)), flow)
    assert [len(m.layers) for m in flow.measurements] == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every_n_steps": 0}, "every_n_steps of at least 1, not 0"), ({"vanishing": 5, "exploding": 2}, "not 5 and 2")],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        GradientFlow(**options)


def test_picture_shows_what_has_vanished_and_what_is_not_finite():
    norms = np.full((4, 3), 1e-3)
    plain = plot_gradient_flow(norms, [0, 50, 100], ["a"] * 4, "")
    norms[0, 0], norms[3, 2], norms[1, 1] = 0, math.inf, math.nan
    marked = plot_gradient_flow(norms, [0, 50, 100], ["a"] * 4, "").astype(int)
    colours = {name: (abs(marked - colour).sum(2) < 6).sum() for name, colour in COLOURS.items()}
    assert colours["red"] > 2000 and colours["grey"] > 2000
    assert not (abs(plain.astype(int) - COLOURS["red"]).sum(2) < 6).sum() > 2000


COLOURS = {"red": np.array([214, 39, 40]), "grey": np.array([191, 191, 191])}


DISTRIBUTED = """
import sys, warnings
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from zoo.callbacks import GradientFlow
warnings.filterwarnings("ignore")

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

devices = int(sys.argv[1])
data = TensorDataset(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))
trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=3,
                  logger=CSVLogger("runs", name=f"on_{devices}", version=""), callbacks=[GradientFlow(every_n_steps=2)],
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Model(), DataLoader(data, batch_size=32 // devices))
if devices > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_with_two_processes_one_writes_the_gradients_of_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(DISTRIBUTED)
    done = subprocess.run([sys.executable, "train.py", "2"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Gradient flow in network at step 0 is healthy") == 1
    monkeypatch.setattr(sys, "argv", ["train.py", "1"])
    runpy.run_path("train.py")
    one, two = (table(tmp_path / "runs" / f"on_{devices}") for devices in "12")
    assert [row["layer"] for row in two] == ["0", "2"] * 2, "as without DDP, which wraps the model"
    for name in ("step", "gradient_norm", "weight_norm", "update_ratio"):
        assert [float(row[name]) for row in two] == pytest.approx([float(row[name]) for row in one], rel=1e-4)
    assert [p.name for p in tmp_path.glob("runs/on_2/gradient_flow*csv")] == ["gradient_flow.csv"]
