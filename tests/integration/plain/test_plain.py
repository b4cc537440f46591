"""The files in plain/ train what the recipes train: after a few steps all parameters are equal, to the bit."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from tests.helpers.command import CHECKOUT
from zoo.cli.fit import run_trainer

FOLDER = CHECKOUT / "plain"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def recipe(name: str, steps: int, *options: str) -> LightningModule:
    """The model of a recipe after some steps on the CPU, without the recipe's callbacks."""
    trainer = [
        "--trainer.accelerator=cpu", f"--trainer.max_steps={steps}", "--trainer.callbacks=null",
        "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false",
        "--trainer.num_sanity_val_steps=0",
    ]  # fmt: skip
    return run_trainer(["fit", "--config", f"{name}.yaml", *trainer, *options]).model


def check_equal(ours: nn.Module, theirs: nn.Module) -> None:
    """Fails unless both have the same parameters in the same order."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    different = [index for index, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    assert not different


def test_gan():
    steps, batch_size, width = 6, 2500, 2  # two epochs, of four batches
    options = [f"--data.batch_size={batch_size}"]
    for role in ("generator", "discriminator"):
        options += [f"--model.{role}=Conv{role.capitalize()}", f"--model.{role}.width={width}"]
    model = recipe("gan", steps, *options)
    networks = import_module("plain.gan").train(steps, batch_size, width)
    for theirs, ours in zip((model.generator, model.discriminator, model.ema.network), networks, strict=True):
        check_equal(ours, theirs)
