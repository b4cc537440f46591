"""The recipe finetune.yaml on a folder of pictures: from random weights, from a checkpoint, and without a download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.command import TINY, fails
from zoo import Classifier
from zoo.cli.main import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "cheap_reports")

SMALL = ["--model.network=PooledResNet", "--model.network.widths=[4, 4, 4]"]
SMALL += ["--data.image_size=8", "--data.augment.crop=1"]
LENGTH = ["--trainer.accelerator=cpu", "--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]


def pictures(folder: str, classes: tuple[str, ...]) -> str:
    """Folder of 40 pictures a class, each class of one color."""
    for number, name in enumerate(classes):
        (Path(folder) / name).mkdir(parents=True)
        for index in range(40):
            color = (60 * number, 200 - 60 * number, 6 * index)
            Image.new("RGB", (20, 24), color).save(Path(folder) / name / f"{index}.png")
    return folder


def fit(folder: str, *options: str) -> Path:
    """Runs the recipe for three epochs; returns the run's folder."""
    before = set(Path("runs/finetune").glob("version_*"))
    main(
        ["fit", "--config=finetune.yaml", f"--data.root={folder}", *SMALL, *LENGTH, "--trainer.max_epochs=3", *options]
    )
    (made,) = set(Path("runs/finetune").glob("version_*")) - before
    return made


def test_a_checkpoint_is_fine_tuned_on_other_classes_and_balanced():
    first = fit(pictures("many", ("a", "b", "c", "d")), "--model.ema_half_life=100")
    best = first / "checkpoints" / "best.ckpt"
    options = ["--model.init_from", str(best), "--model.class_weights=balanced"]
    second = fit(pictures("few", ("x", "y")), *options)
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert config["model"]["init_args"]["init_from"] == str(best)
    model = Classifier.load_from_checkpoint(second / "checkpoints" / "last.ckpt", weights_only=True)
    there = Classifier.load_from_checkpoint(best, weights_only=True)
    assert model.num_classes == 2
    assert model.hparams["class_weights"] == "balanced"
    moved = (model.network.stem[1].weight - there.ema.network.stem[1].weight).norm()
    assert 0 < moved < 0.2 * there.ema.network.stem[1].weight.norm(), "close to where it started from"


def test_null_stands_for_random_weights_on_the_command_line():
    options = ["--model.network.weights=null", "--data.image_size=32", "--data.batch_size=4"]
    root = f"--data.root={pictures('two', ('x', 'y'))}"
    options += [*TINY, "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=null"]
    main(["fit", "--config=finetune.yaml", root, *options])
    checkpoint = torch.load("runs/finetune/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["network"]["init_args"] == {"name": "resnet18", "weights": None}


def test_without_a_network_the_message_names_the_way_out(capsys, monkeypatch):
    def no_network(name, weights=None):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models.get_model", no_network)
    line = fails(capsys, "fit", "--config=finetune.yaml", f"--data.root={pictures('two', ('x', 'y'))}")
    assert line.startswith("the weights DEFAULT of resnet18 cannot be downloaded (Name or service not known)")
    assert "null for random weights" in line
    assert not Path("runs/finetune/version_0").exists()
