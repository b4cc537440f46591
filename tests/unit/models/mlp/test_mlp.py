"""The dropout MLP: where the masks fall, what bounds its weights, and how its recipe ends."""

import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn

from tests.helpers.command import TINY
from zoo import MLPClassifier
from zoo.cli.main import main
from zoo.datamodules import Digits, Points
from zoo.errors import UserError
from zoo.models.mlp.network import MLP


def sgd(parameters, lr=0.5):
    return torch.optim.SGD(parameters, lr=lr)


def fit(model: MLPClassifier, batches: int = 5, **options) -> Trainer:
    warnings.filterwarnings("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", max_steps=batches, enable_model_summary=False, **(quiet | options))
    trainer.fit(model, datamodule=Digits(batch_size=32))
    return trainer


@pytest.mark.parametrize("batch_norm", [False, True])
def test_dropout_is_on_the_input_and_after_each_activation_and_never_on_the_output(batch_norm):
    network = MLP(12, 5, width=7, depth=3, input_dropout=0.1, hidden_dropout=0.4, batch_norm=batch_norm)
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


def test_units_are_dropped_at_their_rates_and_the_rest_is_scaled_up():
    torch.manual_seed(0)
    network = MLP(2000, 3, width=3000, depth=1, input_dropout=0.2, hidden_dropout=0.5)
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


def test_a_dropped_pixel_is_black_and_pixels_lie_between_0_and_1():
    seen = []
    model = MLPClassifier((1, 8, 8), 10, width=4, depth=1, input_dropout=0.5)
    model.network.input_dropout.register_forward_hook(lambda module, x, y: seen.append((x[0], y)))
    white, black = torch.ones(3, 1, 8, 8), -torch.ones(3, 1, 8, 8)
    model.train()
    model.network(white)
    model.network(black)
    (bright, masked), (dark, _) = seen
    assert bright.eq(1).all() and dark.eq(0).all()
    assert set(masked.unique().tolist()) == {0.0, 2.0}, "a dropped white pixel is what a black one is"


def test_points_are_taken_as_they_are():
    model = MLPClassifier((2,), 3, width=4, depth=1).eval()
    seen = []
    model.network.hidden[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(5, 2)
    model(x)
    assert seen[0].equal(x)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_in_evaluation_the_network_is_its_formula(batch_norm):
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


class Norms(Callback):
    """Notes the norms of the rows of all weights before and after each step."""

    def __init__(self):
        self.after: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        layers = [m for m in pl_module.network.modules() if isinstance(m, nn.Linear)]
        self.after.append([layer.weight.detach().norm(dim=1) for layer in layers])


def test_max_norm_holds_after_every_step_for_hidden_units_and_for_nothing_else():
    limit, runs = 0.6, {}
    for max_norm in (0.0, limit):
        torch.manual_seed(0)
        model = MLPClassifier((1, 8, 8), 10, width=16, depth=2, max_norm=max_norm, optimizer=sgd, lr_scheduler=None)
        norms = Norms()
        fit(model, 6, callbacks=[norms])
        runs[max_norm] = norms.after
    for free, bound in zip(runs[0.0], runs[limit], strict=True):
        assert all(rows.max() <= limit + 1e-5 for rows in bound[:2])
        assert any(rows.max() > limit + 0.01 for rows in free[:2]), "without the bound they grow beyond it"
    assert runs[limit][-1][2].max() > limit, "the output layer is free"


def test_a_vector_above_the_limit_keeps_its_direction_and_the_others_stay_as_they_are():
    network = MLP(3, 2, width=2, depth=1)
    with torch.no_grad():
        network.hidden[0].weight.copy_(torch.tensor([[3.0, 0.0, 4.0], [0.3, 0.4, 0.0]]))
        network.output.weight.fill_(9.0)
        network.hidden[0].bias.fill_(9.0)
    network.limit_norms(2.0)
    torch.testing.assert_close(network.hidden[0].weight.detach(), torch.tensor([[1.2, 0.0, 1.6], [0.3, 0.4, 0.0]]))
    assert network.output.weight.eq(9).all() and network.hidden[0].bias.eq(9).all()


def test_the_averaged_weights_keep_the_limit_too():
    model = MLPClassifier((1, 8, 8), 10, 16, 1, max_norm=0.6, ema_half_life=50, optimizer=sgd, lr_scheduler=None)
    fit(model, 6)
    assert model.ema.network.hidden[0].weight.norm(dim=1).max() <= 0.6 + 1e-5


def test_it_learns_points_and_pictures(tmp_path):
    warnings.filterwarnings("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    for data in (Points("moons", num_train=2000, val_size=500), Digits(repeats=4)):
        torch.manual_seed(0)
        options = {"input_dropout": 0.05, "hidden_dropout": 0.2, "width": 64, "depth": 2}
        model = MLPClassifier(data.input_shape, data.num_classes, optimizer=adam, **options)
        trainer = Trainer(accelerator="cpu", max_epochs=4, enable_model_summary=False, **quiet)
        trainer.fit(model, datamodule=data)
        (metrics,) = trainer.test(model, datamodule=data, verbose=False)
        assert metrics["test/acc"] > 0.93


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"input_dropout": 1.0}, r"input_dropout is 1\.0; it must be at least 0 and below 1"),
        ({"hidden_dropout": -0.1}, r"hidden_dropout is -0\.1"),
        ({"max_norm": -1}, "max_norm is -1"),
        ({"max_norm": float("nan")}, "max_norm is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MLPClassifier((2,), 2, **options)


# The recipe, and how it says that it ended


@pytest.fixture
def said(tmp_path, monkeypatch, caplog):
    """The messages of a run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [caplog.handler])
    return lambda: "\n".join(caplog.messages)


# Without batch norm, whose averages move even where the learning rate is zero.
RECIPE = ["fit", "--config", "mlp.yaml", "--data=Digits", TINY[0], *TINY[3:]]
RECIPE += ["--model.width=16", "--model.depth=1", "--model.batch_norm=false"]


def test_a_run_that_stopped_early_says_when_and_why_and_which_checkpoint_is_best(said):
    options = ["--model.optimizer.lr=0.0", "--trainer.callbacks.patience=2", "--data.batch_size=200"]
    main([*RECIPE, *options])
    assert "stopped early at step 18, in epoch 3: val/loss had not fallen in 2 validations" in said()
    path = "runs/mlp/version_0/checkpoints/best.ckpt"
    best = re.search(rf"best val/loss: (\S+) after epoch 1, in {re.escape(path)}", said())
    assert best
    assert torch.load(path, weights_only=True)["epoch"] == 0
    assert f"Next: python cli.py test --ckpt_path {path}" in said()
    (metrics,) = measured(path)
    assert metrics["val/loss"] == pytest.approx(float(best[1]), rel=1e-3)


def measured(path: str) -> list:
    """Validation of a checkpoint of the recipe, without the command line."""
    model = MLPClassifier.load_from_checkpoint(path, weights_only=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    return trainer.validate(model, datamodule=Digits(), verbose=False)


def test_a_run_that_stopped_within_an_epoch_names_that_epoch(said):
    options = ["--model.optimizer.lr=0.0", "--trainer.callbacks.patience=1", "--data.batch_size=100"]
    main([*RECIPE, *options, "--trainer.val_check_interval=4"])
    assert "stopped early at step 8, in epoch 1: val/loss had not fallen in 1 validation" in said()


def test_a_run_that_came_to_its_end_says_that_it_was_not_stopped(said):
    main([*RECIPE, "--trainer.max_epochs=2", "--data.batch_size=200"])
    assert "not stopped early: val/loss was best at the end" in said()
    assert re.search(r"best val/loss: \S+ after epoch 2, in runs/mlp/version_0/checkpoints/best\.ckpt", said())


def test_a_run_that_ends_before_its_first_validation_ends_well(said):
    main([*RECIPE, "--trainer.max_steps=1", "--data.batch_size=200", "--trainer.limit_val_batches=1"])
    assert "Run finished after 1 steps" in said()
    config = yaml.safe_load(Path("runs/mlp/version_0/config.yaml").read_text())
    callbacks = {c["class_path"].split(".")[-1]: c.get("init_args", {}) for c in config["trainer"]["callbacks"]}
    assert callbacks["EarlyStopping"]["monitor"] == callbacks["BestAndLastCheckpoint"]["monitor"] == "val/loss"
    assert 0 < config["model"]["init_args"]["input_dropout"] < config["model"]["init_args"]["hidden_dropout"]
