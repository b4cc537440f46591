"""Options that may change when a run is resumed, and those that make it another run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from zoo import MLPClassifier
from zoo.checkpoints.format import describe_model
from zoo.cli.resuming import check_resumable, difference, reported_changes
from zoo.errors import UserError

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "matmul_precision": "auto",
    "trainer": {"max_steps": 100, "devices": 1, "precision": None, "callbacks": [{"class_path": "a.B"}]},
    "run": {"root": "runs"},
    "wandb": {"mode": "auto"},
    "model": {
        "class_path": "zoo.MLPClassifier",
        "init_args": {"loss": "hinge", "compile": False, "widths": [8, 8], "optimizer": ADAM, "lr_scheduler": None},
        "dict_kwargs": {"depth": 3},
    },
    "data": {"class_path": "zoo.datamodules.Text", "init_args": {"path": "text.txt", "batch_size": 8, "cache": "auto"}},
    "ckpt_path": None,
}


def changed(option: str, value: Any) -> dict[str, Any]:
    """The configuration with another value, at a path of keys."""
    config = copy.deepcopy(CONFIG)
    *path, last = option.split("/")
    section = config
    for key in path:
        section = section[key]
    section[last] = value
    return config


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Folder of a run of the configuration above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("seed_everything", 1, "seed_everything: 0 in the run, 1 now"),
        ("model/init_args/loss", "minimax", "model.loss: hinge in the run, minimax now"),
        ("model/init_args/widths", [8, 9], "model.widths: [8, 8] in the run, [8, 9] now"),
        ("model/dict_kwargs/depth", 4, "model.depth: 3 in the run, 4 now"),
        ("model/dict_kwargs/width", 4, "model.width: null in the run, 4 now"),
        ("model/class_path", "zoo.GAN", "model: zoo.MLPClassifier in the run, zoo.GAN now"),
        ("model/init_args/optimizer/class_path", "torch.optim.SGD",
         "model.optimizer: torch.optim.Adam in the run, torch.optim.SGD now"),
        ("model/init_args/lr_scheduler", ADAM, "model.lr_scheduler: null in the run, "),
        ("data/init_args/path", "other.txt", "data.path: text.txt in the run, other.txt now"),
        ("data", None, "data: {"),
    ],
)  # fmt: skip
def test_other_models_and_data_are_another_run(option, value, words, folder):
    assert difference(changed(option, value), folder).startswith(words)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("trainer/precision", "bf16-mixed", "trainer.precision: null in the run, bf16-mixed now"),
        ("data/init_args/batch_size", 16, "data.batch_size: 8 in the run, 16 now"),
        ("model/init_args/optimizer/init_args/lr", 0.1,
         "model.optimizer.lr: 0.001 in the run, 0.1 now; the checkpoint holds it, so it stays"),
    ],
)  # fmt: skip
def test_the_course_of_training_may_change_and_is_reported(option, value, words, folder):
    assert difference(changed(option, value), folder) == ""
    assert reported_changes(changed(option, value), folder) == [words]


def test_everything_else_may_change_without_a_word(folder):
    free = {
        "trainer/max_steps": 200, "trainer/devices": 2, "trainer/callbacks": [], "run/root": "elsewhere",
        "wandb/mode": "offline", "ckpt_path": "last", "model/init_args/compile": True, "data/init_args/cache": "disk",
        "data/init_args/path": str(folder / "text.txt"),  # the same file
        "model/init_args/added_since": 3,  # with a default
        "model/class_path": "zoo.models.mlp.module.MLPClassifier",  # the same class
    }  # fmt: skip
    for option, value in free.items():
        assert reported_changes(changed(option, value), folder) == [], option


@pytest.mark.parametrize("text", ["", "[1, 2]", "model: {a", "a: 1\na: 2", "\x00"])
def test_a_configuration_that_cannot_be_read_is_named_with_the_way_out(text, folder):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml.*; mend the file, or remove it to resume the run without"):
        difference(CONFIG, folder)


def test_without_a_configuration_the_model_in_the_checkpoint_is_compared(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    model, other = (MLPClassifier((1, 8, 8), 10, 8, 1, label_smoothing=value) for value in (0.0, 0.1))
    training = {name: {} for name in ("loops", "callbacks")} | {
        name: [] for name in ("optimizer_states", "lr_schedulers")
    }
    held = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), **describe_model(model)}
    held |= {"pytorch-lightning_version": "2.6.6", **training}
    torch.save(held, path)
    check_resumable(path, model, None)
    with pytest.raises(UserError, match=r"model\.label_smoothing: 0\.0 in the run, 0\.1 now"):
        check_resumable(path, other, None)
    (tmp_path / "config.yaml").touch()  # which is compared instead
    check_resumable(path, other, None)
