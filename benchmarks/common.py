"""Helpers of the benchmarks: data, runs of recipes, Fréchet distance, processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from zoo.cli.fit import run_trainer
from zoo.datamodules import Digits, FashionMNIST, InMemoryDataModule
from zoo.metrics import FrechetDistance
from zoo.metrics.features import FeatureExtractor
from zoo.registry import recipe_files
from zoo.testing.runs import quiet

CHUNK = 500  # images per call of the feature extractor


def image_data(root: str | None) -> InMemoryDataModule:
    """Fashion-MNIST in the folder `root`; without a folder, the digits that the package ships."""
    return FashionMNIST(root=root) if root else Digits()


def read_recipe(name: str) -> dict[str, Any]:
    """Configuration of a shipped recipe, such as "gan.yaml"."""
    return yaml.safe_load(recipe_files()[name].read_text(encoding="utf-8"))


def run_recipe(recipes: Sequence[str], folder: str, seed: int, *options: str) -> tuple[Trainer, float]:
    """Runs `zoo fit` without progress bar and model summary, and without Weights & Biases unless WANDB_MODE is set.

    Args:
        recipes: names or paths of the recipes, stacked in this order.
        folder: folder of the run.
        seed: random seed.
        options: further options of `fit`.

    Returns:
        The Trainer and the CPU seconds of the whole process, validation and start included.
    """
    os.environ.setdefault("WANDB_MODE", "disabled")
    args = ["fit", *(f"--config={recipe}" for recipe in recipes), *options]
    args += [f"--seed_everything={seed}", f"--run.root={folder}"]
    args += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    start = time.process_time()
    trainer = run_trainer(args).trainer
    return trainer, time.process_time() - start


def frechet(extractor: FeatureExtractor, real: Tensor, fake: Tensor) -> float:
    """Fréchet distance of two sets of images, each (N, C, H, W) in [-1, 1], in the extractor's features."""
    metric = FrechetDistance(extractor)
    for images, is_real in ((real, True), (fake, False)):
        for chunk in images.split(CHUNK):
            metric.update(chunk, real=is_real)
    return metric.compute().item()


def in_own_process(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function quietly in a process that is forked for it, with one thread; returns what it returns.

    Args:
        name: what is measured, for the message if it fails.
        function: function whose time and memory are those of a new process.
        *arguments: its arguments.

    Raises:
        SystemExit: the function fails; its error is printed above.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_result, args=(theirs, function, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"{name} failed, see above") from None
    finally:
        process.join()


def _send_result(connection: Any, function: Callable[..., Any], *arguments: Any) -> None:
    torch.set_num_threads(1)
    with quiet():
        connection.send(function(*arguments))
