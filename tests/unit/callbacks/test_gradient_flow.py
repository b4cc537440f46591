"""GradientFlow: when it measures, which networks, and what it writes."""

import csv
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.networks import mlps
from tests.unit.test_gradients import Reversed
from tests.unit.training import quiet_trainer
from tests.unit.two_ranks import train_with_gradient_flow
from zoo import GAN
from zoo.callbacks import GradientFlow
from zoo.datamodules import Digits
from zoo.errors import UserError


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
    trainer = quiet_trainer(callbacks=list(callbacks), **({"max_steps": 4, "max_epochs": -1} | options))
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


# Verdict


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


# Measurements


def test_update_ratio_of_sgd_is_lr_times_gradient_over_weight():
    flow = GradientFlow(every_n_steps=2)
    fit(Classifier(mlp(4, nn.ReLU), lr=0.1), flow)
    assert [m.step for m in flow.measurements] == [0, 2]
    for measurement in flow.measurements:
        gradient, weight, update = values_of(measurement).T
        torch.testing.assert_close(update, 0.1 * gradient / weight, rtol=1e-4, atol=0)


def test_update_ratio_of_the_first_step_of_adam_is_lr_over_rms_weight():
    class WithAdam(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    flow = GradientFlow()
    model = WithAdam(mlp(3, nn.Tanh))
    norms = [model.network[k].weight.norm().item() for k in (0, 2, 4)]
    sizes = [model.network[k].weight.numel() for k in (0, 2, 4)]
    fit(model, flow, max_steps=1)
    # Adam's first step changes every weight by the learning rate.
    expected = [1e-3 * math.sqrt(size) / norm for size, norm in zip(sizes, norms, strict=True)]
    assert values_of(flow.measurements[0])[:, 2].tolist() == pytest.approx(expected, rel=1e-3)


def test_gradient_and_weight_norms_are_those_right_before_the_optimizer_step():
    flow, spy = GradientFlow(), Spy()
    model = Classifier(Reversed())
    weights = {f"layers.{k}": layer.weight.norm().item() for k, layer in enumerate(model.network.layers)}
    fit(model, flow, spy, max_steps=1)
    (measurement,) = flow.measurements
    assert measurement.layers == tuple(f"layers.{k}" for k in (4, 3, 2, 1, 0)), "in order of execution"
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


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    values = []
    for batch_size, accumulate in ((16, 4), (64, 1)):
        seed_everything(0, verbose=False)
        model, flow = Classifier(mlp(3, nn.Tanh)), GradientFlow(every_n_steps=1)
        model.train_dataloader = lambda n=batch_size, data=model.data: DataLoader(data, batch_size=n)
        fit(model, flow, max_steps=3, accumulate_grad_batches=accumulate)
        assert [m.step for m in flow.measurements] == [0, 1, 2]
        values.append(torch.stack([values_of(m) for m in flow.measurements]))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-7)


def test_measures_every_n_steps_and_registers_no_hooks_in_between():
    flow, spy = GradientFlow(every_n_steps=3), Spy()
    model = Classifier(mlp(4, nn.ReLU))
    trainer = fit(model, flow, spy, max_steps=8)
    assert [m.step for m in flow.measurements] == [0, 3, 6]
    # The optimizer's step and three ReLUs; at the first step the order of four layers, too.
    assert spy.hooks == [8, 0, 0, 4, 0, 0, 4, 0]
    assert count_hooks(model, trainer) == 0


def test_hooks_are_removed_after_an_exception():
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("raised by the test")

    model = Failing(mlp(3, nn.ReLU))
    with pytest.raises(RuntimeError, match="raised by the test"):
        fit(model, GradientFlow())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_measurement_takes_one_device_transfer(monkeypatch):
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


def test_training_is_bitwise_the_same_with_the_callback(tmp_path, drawn):
    weights = []
    for callbacks in ([], [GradientFlow(every_n_steps=1)]):
        seed_everything(0, verbose=False)
        model = Classifier(nn.Sequential(mlp(4, nn.ReLU), nn.Dropout(0.5)))
        logger = CSVLogger(tmp_path, name=str(len(callbacks)))
        fit(model, *callbacks, max_steps=6, logger=logger)
        weights.append([p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()])
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


# Several networks


def test_a_gan_has_a_profile_of_each_network(tmp_path, drawn):
    flow = GradientFlow(every_n_steps=4)
    model = GAN(input_shape=(1, 8, 8), **mlps(16))
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"max_steps": 6, "logger": logger, "limit_val_batches": 0, "log_every_n_steps": 1}
    fit(model, flow, data=Digits(), **options)
    assert [(m.step, m.network) for m in flow.measurements] == [
        (step, name) for step in (0, 4) for name in ("discriminator", "generator")
    ], "the moving average of the generator has no gradient"
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
    fit(GAN(input_shape=(1, 8, 8), **mlps(16)), flow, spy, data=Digits(), max_steps=1, limit_val_batches=0)
    for measurement, gradients in zip(flow.measurements, spy.gradients, strict=True):
        expected = {
            name: gradients[f"{measurement.network}.{name}.weight"].norm().item() for name in measurement.layers
        }
        assert gradients_of(measurement) == pytest.approx(expected)


def test_a_network_that_steps_rarely_is_measured_once_in_each_period():
    flow = GradientFlow(every_n_steps=4)
    fit(GAN(input_shape=(1, 8, 8), **mlps(16), n_critic=3), flow, data=Digits(), max_steps=12, limit_val_batches=0)
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


def test_frozen_layers_are_left_out():
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


# Output


class Validated(Classifier):
    def validation_step(self, batch, batch_idx):
        pass

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=64)


class Gallery(CSVLogger):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.images = []

    def log_image(self, key, images, step=None):
        self.images.append((key, images[0].ndim, step))


def test_table_plot_and_scalars_are_written_to_the_run(tmp_path):
    logger = Gallery(tmp_path, name="", version="")
    fit(Classifier(mlp(3, nn.ReLU)), GradientFlow(every_n_steps=2), logger=logger)
    rows = table(tmp_path)
    assert list(rows[0]) == ["step", "network", "depth", "layer", "gradient_norm", "weight_norm", "update_ratio"]
    assert [(row["step"], row["depth"], row["layer"]) for row in rows] == [
        (step, depth, layer) for step in "02" for depth, layer in (("1", "0"), ("2", "2"), ("3", "4"))
    ]
    assert all(float(row[name]) > 0 for row in rows for name in ("gradient_norm", "weight_norm", "update_ratio"))
    assert np.asarray(Image.open(tmp_path / "gradient_flow_network.png")).std() > 20
    assert logger.images == [("gradient_flow/network", 3, 4)]
    with (tmp_path / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["gradient_flow/network/dead_relus"]]
    assert [row["step"] for row in logged] == ["0", "2"]


@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """Replaces the plots, which take a second each, by two pixels; keeps what was to be plotted."""
    calls: list[tuple] = []

    def draw(*args):
        calls.append(args)
        return np.zeros((2, 2, 3), dtype=np.uint8)

    monkeypatch.setattr("zoo.callbacks.gradient_flow.plot_gradient_flow", draw)
    return calls


@pytest.mark.parametrize(("every_seconds", "plots"), [(0, 4), (1e6, 2)])
def test_plots_are_drawn_at_validations_at_most_every_n_seconds(every_seconds, plots, tmp_path, drawn):
    options = {"val_check_interval": 2, "logger": CSVLogger(tmp_path, name="", version=""), "max_steps": 6}
    fit(Validated(mlp(3, nn.ReLU)), GradientFlow(every_seconds=every_seconds), **options)
    assert len(drawn) == plots, "after the first of three validations, after later ones if due, and at the end"


def test_verdict_is_printed_first_last_and_when_it_changes(monkeypatch):
    class Fading(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 2:
                self.network[2].weight.data.mul_(1e-6)

    printed = []
    monkeypatch.setattr("zoo.callbacks.gradient_flow.rank_zero_info", printed.append)
    torch.manual_seed(0)
    fit(Fading(mlp(3, nn.Tanh), lr=0.0), GradientFlow(every_n_steps=1), max_steps=5)
    assert [line.split(":")[0] for line in printed] == [
        "Gradient flow in network at step 0 is healthy",
        "Gradient flow in network at step 2 is vanishing",
        "Gradient flow in network at step 4 is vanishing",
    ]


def test_without_a_logger_the_verdict_is_printed_and_no_file_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = []
    monkeypatch.setattr("zoo.callbacks.gradient_flow.rank_zero_info", printed.append)
    flow = GradientFlow()
    fit(Classifier(mlp(3, nn.ReLU)), flow)
    assert printed == [f"Gradient flow in network at step 0 is {flow.verdict}"]
    assert list(tmp_path.rglob("*")) == []


def test_a_resumed_run_writes_the_table_of_an_uninterrupted_one(tmp_path, drawn):
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
    names = [path.name for path in (tmp_path / "whole").glob("*flow*.csv")]
    assert names == ["gradient_flow.csv"], "rows are appended to the existing table"


def test_memory_and_checkpoints_hold_a_bounded_number_of_measurements_and_the_table_all(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("zoo.callbacks.gradient_flow.MOST", 4)

    def run(**options):
        seed_everything(0, verbose=False)
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=9, save_top_k=-1)
        logger = CSVLogger(tmp_path, name="", version="")
        flow = GradientFlow(every_n_steps=1)
        fit(Classifier(mlp(3, nn.ReLU), samples=16), flow, keep, logger=logger, enable_checkpointing=True, **options)
        return [m.step for m in flow.measurements], [int(row["step"]) for row in table(tmp_path)[::3]]

    for options in ({}, {"ckpt_path": tmp_path / "step=9.ckpt"}):
        kept, written = run(max_steps=14, **options)
        assert written == list(range(14)), "also of a run that is resumed in its folder"
        assert kept == [0, 8, 13], "every eighth, and the last"
    state = torch.load(tmp_path / "step=9.ckpt", weights_only=True)["callbacks"]["GradientFlow"]
    assert len(state["measurements"]) <= 4
    assert {path.name for path in tmp_path.glob("*flow*.csv")} == {"gradient_flow.csv"}


def test_the_table_of_another_run_is_not_overwritten(tmp_path, drawn):
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
            assert len(list(csv.DictReader(file))) == len(first), "each new run has a numbered file"
    assert (tmp_path / "gradient_flow-1_network.png").is_file()


def test_checkpoint_state_is_plain_values(tmp_path):
    keep = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    fit(Classifier(mlp(3, nn.ReLU)), GradientFlow(), keep, enable_checkpointing=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["GradientFlow"]
    assert state["measurements"][0]["layers"] == ("0", "2", "4")


def test_a_second_fit_discards_earlier_measurements():
    flow = GradientFlow()
    for depth in (3, 2):
        fit(Classifier(mlp(depth, nn.ReLU)), flow)
    assert [len(m.layers) for m in flow.measurements] == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every_n_steps": 0}, "every_n_steps of at least 1, not 0"), ({"vanishing": 5, "exploding": 2}, "not 5 and 2")],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        GradientFlow(**options)


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["gradient_flow", "sharded_flow"], ids=["ddp", "fsdp"])
def test_two_ranks_write_one_table_with_the_reduced_gradients(strategy, two_ranks, tmp_path):
    train_with_gradient_flow(tmp_path)
    one, two = table(tmp_path), table(two_ranks / strategy)
    assert [row["layer"] for row in two] == ["0", "2"] * 2, "the names are those without DDP's wrapper"
    for name in ("step", "gradient_norm", "weight_norm", "update_ratio"):
        assert [float(row[name]) for row in two] == pytest.approx([float(row[name]) for row in one], rel=1e-4)
    assert [path.name for path in (two_ranks / strategy).glob("gradient_flow*csv")] == ["gradient_flow.csv"]
    output = (two_ranks / "stderr.txt").read_text()
    assert output.count("Gradient flow in network at step 0 is healthy") == 2, "once for each strategy"
