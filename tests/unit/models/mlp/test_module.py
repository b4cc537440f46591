"""The dropout MLP as a classifier: max-norm, what it learns, and its recipe."""

from importlib.resources import files

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.datamodules import Digits, Points
from zoo.errors import UserError


def sgd(parameters, lr=0.5):
    return torch.optim.SGD(parameters, lr=lr)


def fit(model: MLPClassifier, batches: int = 5, **options) -> Trainer:
    trainer = quiet_trainer(max_steps=batches, limit_val_batches=0, **options)
    trainer.fit(model, datamodule=Digits(batch_size=32))
    return trainer


class Norms(Callback):
    """Keeps the norms of the rows of all weights after each step."""

    def __init__(self):
        self.after: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        layers = [m for m in pl_module.network.modules() if isinstance(m, nn.Linear)]
        self.after.append([layer.weight.detach().norm(dim=1) for layer in layers])


def test_max_norm_holds_after_every_step_for_hidden_layers_only():
    limit, runs = 0.6, {}
    for max_norm in (0.0, limit):
        torch.manual_seed(0)
        model = MLPClassifier((1, 8, 8), 10, width=16, depth=2, max_norm=max_norm, optimizer=sgd, lr_scheduler=None)
        norms = Norms()
        fit(model, 6, callbacks=[norms])
        runs[max_norm] = norms.after
    for free, bound in zip(runs[0.0], runs[limit], strict=True):
        assert all(rows.max() <= limit + 1e-5 for rows in bound[:2])
        assert any(rows.max() > limit + 0.01 for rows in free[:2]), "without the limit they grow beyond it"
    assert runs[limit][-1][2].max() > limit, "the output layer has no limit"


def test_max_norm_holds_for_averaged_weights():
    model = MLPClassifier((1, 8, 8), 10, 16, 1, max_norm=0.6, ema_half_life=50, optimizer=sgd, lr_scheduler=None)
    fit(model, 6)
    assert model.ema.network.hidden[0].weight.norm(dim=1).max() <= 0.6 + 1e-5


def test_it_learns_points_and_images():
    for data in (Points("moons", num_train=2000, val_size=500), Digits(repeats=2)):
        torch.manual_seed(0)
        options = {"input_dropout": 0.05, "hidden_dropout": 0.2, "width": 64, "depth": 2}
        model = MLPClassifier(data.input_shape, data.num_classes, optimizer=adam, **options)
        trainer = quiet_trainer(max_epochs=4, limit_val_batches=0)
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
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        MLPClassifier((2,), 2, **options)


def test_the_recipe_stops_early_by_the_metric_of_its_best_checkpoint_and_drops_more_hidden_units():
    recipe = yaml.safe_load(files("zoo.configs").joinpath("mlp.yaml").read_text(encoding="utf-8"))
    callbacks = {c["class_path"]: c.get("init_args", {}) for c in recipe["trainer"]["callbacks"]}
    assert callbacks["EarlyStopping"]["monitor"] == callbacks["BestAndLastCheckpoint"]["monitor"] == "val/loss"
    assert 0 < recipe["model"]["init_args"]["input_dropout"] < recipe["model"]["init_args"]["hidden_dropout"]
