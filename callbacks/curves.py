"""Curves of all logged metrics as one figure."""

from __future__ import annotations

import math
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from zoo.plotting.curves import plot_curves
from zoo.plotting.images import save_png
from zoo.report.metrics import read_metrics

PACE = 30  # seconds between two figures for every second that one takes


class CurvePlotter(Callback):
    """Plots metrics.csv to curves.png in the run's folder, after validations and at the end of training.

    For any LightningModule, with Lightning's CSVLogger. Floors and optima (`x_floor`, `x_optimum`) are dashed lines.

    Args:
        every_seconds: least time between two figures, in seconds; drawing one takes about a second. Figures are rarer
            where they would take more than 3% of the run. 0 for one after every validation.
    """

    def __init__(self, every_seconds: float = 20.0) -> None:
        self.every_seconds = every_seconds
        self._next = -math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = time.monotonic() >= self._next
        if due and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._plot(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._plot(trainer)

    def _plot(self, trainer: Trainer) -> None:
        start = time.monotonic()
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, CSVLogger):
                logger.save()
                metrics = read_metrics(Path(logger.log_dir) / "metrics.csv")
                if metrics:
                    # Overwritten on purpose: the figure shows the run so far.
                    save_png(Path(logger.log_dir) / "curves.png", plot_curves(metrics), overwrite=True)
        end = time.monotonic()
        self._next = end + (max(self.every_seconds, PACE * (end - start)) if self.every_seconds else 0)
