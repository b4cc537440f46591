"""Helpers of the benchmarks: data, runs of recipes, Fréchet distance."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from zoo.cli.fit import run_trainer
from zoo.datamodules import Digits, FashionMNIST, InMemoryDataModule
from zoo.metrics import FrechetDistance
from zoo.metrics.features import FeatureExtractor
from zoo.registry import recipe_files

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
