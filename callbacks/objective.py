"""Objective of a search: the best value of a metric over a run, and an early end of runs that are not promising."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from zoo.errors import UserError, did_you_mean


class Objective(Callback):
    """Keeps the best value of a validation metric, and ends the run when it is told to.

    The run ends as after early stopping: at once, with its last checkpoint and its loggers closed.

    Args:
        metric: name of the metric.
        mode: "min" if lower values are better, "max" if higher values are.
        prune: called after every validation with its number, counted from 1, and the value; True ends the run.

    Attributes:
        validations: number of validations so far.
        best: best value so far, None before the first validation; NaN is never best.
        pruned: whether `prune` has ended the run.
        folder: folder of the run, None without loggers.
        steps: optimizer steps so far.

    Raises:
        UserError: the metric is not measured in validation.
    """

    def __init__(
        self, metric: str, mode: Literal["min", "max"] = "min", prune: Callable[[int, float], bool] | None = None
    ) -> None:
        self.metric, self.mode, self.prune = metric, mode, prune
        self.best: float | None = None
        self.pruned = False
        self.folder: str | None = None
        self.steps = 0
        self.validations = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder = trainer.log_dir

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.metric not in trainer.callback_metrics:
            measured = [name for name in trainer.callback_metrics if not name.startswith("train/")]
            raise UserError(f"{self.metric} is not measured in validation{did_you_mean(self.metric, measured)}")
        value = float(trainer.callback_metrics[self.metric])
        self.validations += 1
        if not math.isnan(value):
            better = min if self.mode == "min" else max
            self.best = value if self.best is None else better(self.best, value)
        if self.prune is not None and self.prune(self.validations, value):
            self.pruned = True
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps = trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.steps = trainer.global_step
