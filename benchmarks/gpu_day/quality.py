"""Time and figures of whole runs of the recipes, in bf16, on real data."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.gpu_day.loops import precision_of
from benchmarks.gpu_day.recipes import read_recipe, set_up
from benchmarks.gpu_day.results import Options, Part, Skipped
from zoo.testing.runs import quiet

#: Recipe, metric, whether more is better, the value whose time is measured, and options of the Trainer instead of the
#: recipe's.
RUNS: dict[str, tuple[str, bool, float | None, dict[str, Any]]] = {
    "resnet.yaml": ("val/acc", True, 0.94, {}),
    "shakespeare.yaml": ("val/loss", False, 1.4697, {}),  # nanoGPT's published loss
    "resnet20.yaml": ("val/acc", True, 0.9, {"max_steps": 24_000}),
    "diffusion_fashion.yaml": ("val/fd", False, None, {}),
}
LENGTH = ("max_epochs", "max_steps", "val_check_interval", "check_val_every_n_epoch")


def parts(options: Options) -> dict[str, Part]:
    """One run of each recipe."""
    return {recipe: partial(run, recipe, options) for recipe in RUNS}


class History(Callback):
    """Keeps a metric after each validation, and the seconds since the start."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: list[tuple[float, float]] = []
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append((time.perf_counter() - self._start, trainer.callback_metrics[self.metric].item()))


def run(recipe: str, options: Options) -> dict[str, Any]:
    """Trains a recipe, and measures the test split if there is one."""
    metric, rising, goal, changes = RUNS[recipe]
    setup = set_up(recipe, options, unpack=True)
    if setup.source.startswith("random") and not options.tiny:
        raise Skipped(f"{read_recipe(recipe)['data']['class_path']} is not in --data")
    length = {name: value for name, value in setup.recipe["trainer"].items() if name in LENGTH} | changes
    if options.tiny:
        length = {"max_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    model, data = setup.build()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    history = History(metric)
    with tempfile.TemporaryDirectory() as folder, precision_of("bf16-mixed") as precision, quiet():
        trainer = setup.trainer(options, folder, precision=precision, callbacks=[history], **length)
        start = time.perf_counter()
        trainer.fit(model, datamodule=data)
        seconds = time.perf_counter() - start
        steps = trainer.global_step
        tested = {} if recipe == "shakespeare.yaml" else trainer.test(model, datamodule=data, verbose=False)[0]
    values = [value for _, value in history.values]
    reached = [t for t, value in history.values if goal is not None and (value >= goal if rising else value <= goal)]
    found = {
        "data": setup.source,
        "seconds": round(seconds, 1),
        "steps": steps,
        "metric": metric,
        "best": round(max(values) if rising else min(values), 4),
        "last": round(values[-1], 4),
        "goal": goal,
        "seconds to it": round(reached[0], 1) if reached else None,
        "test": {
            name: round(value, 4) for name, value in tested.items() if name in ("test/acc", "test/nll", "test/fd")
        },
    }
    if options.device == "cuda":
        found["peak memory, MB"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return found
