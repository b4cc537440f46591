"""Short runs in the working folder, interrupted and resumed, for tests that compare their ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers.models import tiny_arguments

#: Metric by which the checkpoints of generative models are chosen; val/loss for all others.
MONITORS = {"GAN": "val/fd", "Diffusion": "val/fd", "ConsistencyModel": "val/fd"}
STEPS = 45


class Interruption(Callback):
    """Sends this process a signal, or raises an error, before a batch.

    Args:
        step: number of steps after which it does.
        number: number of the signal; 0 for an error.
    """

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if not self.number:
                raise RuntimeError("the process fails here")
            os.kill(os.getpid(), self.number)


def recipe(model: str, steps: int, gradient_flow: bool = True) -> dict[str, Any]:
    """Recipe of a run that validates, samples and logs in different steps, also across the end of an epoch.

    Args:
        model: name of the model in the registry.
        steps: number of training steps.
        gradient_flow: also measure the gradient flow, and draw it.
    """
    monitor = {"monitor": MONITORS.get(model, "val/loss"), "mode": "min"}
    callbacks: list[dict[str, Any]] = [
        {"class_path": "BestAndLastCheckpoint", "init_args": monitor},
        {"class_path": "EarlyStopping", "init_args": {**monitor, "patience": 50}},
    ]
    if gradient_flow:
        callbacks.append({"class_path": "GradientFlow", "init_args": {"every_n_steps": 10}})
    if model in (*MONITORS, "TransformerLM"):
        callbacks.append({"class_path": "SampleLogger", "init_args": {"n": 4, "every_n_steps": 11}})
    if model == "Seq2Seq":
        callbacks.append({"class_path": "AttentionMaps", "init_args": {"every_n_steps": 25}})
    trainer = {
        "accelerator": "cpu", "max_steps": steps, "val_check_interval": 7, "check_val_every_n_epoch": None,
        "log_every_n_steps": 5, "num_sanity_val_steps": 0, "callbacks": callbacks,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return {"trainer": trainer}


def arguments(model: str, name: str, *options: str, gradient_flow: bool = True) -> list[str]:
    """Arguments of `fit` for a run of 45 steps in the working folder.

    Args:
        model: name of the model in the registry.
        name: name of the run.
        *options: further options.
        gradient_flow: also measure the gradient flow, and draw it.
    """
    Path("run.yaml").write_text(yaml.safe_dump(recipe(model, STEPS, gradient_flow)))
    return ["fit", "--config", "run.yaml", *tiny_arguments(model, Path.cwd()), f"--run.name={name}", *options]


def mlp_arguments(*options: str) -> list[str]:
    """Arguments of `fit` for the shortest run: of a classifier, under the name `run`."""
    return arguments("MLPClassifier", "run", *options, gradient_flow=False)


def folder_of(name: str, version: int = 0) -> Path:
    """The folder of a run."""
    return Path("runs") / name / f"version_{version}"


def interrupted(step: int, number: int = signal.SIGTERM) -> list[str]:
    """Options that interrupt a run; see `Interruption`."""
    return [
        f"--trainer.callbacks+={__name__}.Interruption",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.number={int(number)}",
    ]
