"""The progress of training in a notebook."""

from __future__ import annotations

import math
import time
from html import escape
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from zoo.errors import check_at_least
from zoo.plotting.notebook import Output, Rich, in_notebook


class NotebookProgress(ProgressBar):
    """Progress of training in a notebook: a bar, one line on time and one with the newest metrics, in place.

    The metrics are those that the model logs for the progress bar, and those of validation. With `SampleLogger` the
    newest samples stand below. Outside of a notebook it shows nothing; `ShortProgressBar` is
    for a terminal.

    Args:
        refresh_rate: most updates in a second.
    """

    def __init__(self, refresh_rate: int = 4) -> None:
        super().__init__()
        check_at_least(1, refresh_rate=refresh_rate)
        self.refresh_rate = refresh_rate
        self._enabled = True
        self._output: Output | None = None
        self._due = -math.inf
        self._start = (0.0, 0)  # seconds, optimizer steps

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._output = Output() if in_notebook() and self._enabled else None
        self._start = (time.monotonic(), trainer.global_step)
        self._due = -math.inf
        self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() >= self._due:
            self._show(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module, ended=True)

    def _show(self, trainer: Trainer, pl_module: LightningModule, ended: bool = False) -> None:
        if self._output is None:
            return
        self._due = time.monotonic() + 1 / self.refresh_rate
        steps, total = trainer.global_step, _total_steps(trainer)
        seconds, done = time.monotonic() - self._start[0], steps - self._start[1]
        words = [f"epoch {trainer.current_epoch + 1}", f"step {steps:,}" + (f" of {total:,}" if total else "")]
        if done:
            words += [f"{done / seconds:.3g} steps/s", f"{_duration(seconds)} so far"]
        if done and total and not ended:
            words.append(f"{_duration(seconds / done * (total - steps))} left")
        line = " · ".join(words)
        metrics = self.get_metrics(trainer, pl_module)
        values = " · ".join(f"{name.removeprefix('train/')} {_number(value)}" for name, value in metrics.items())
        bar = f'<progress value="{steps}" max="{total}" style="width: 30em"></progress><br>' if total else ""
        self._output.show(Rich(f"<div>{bar}{escape(line)}<br>{escape(values)}</div>", f"{line}\n{values}".strip()))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        validated = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        return {**metrics, **validated}


def _total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run; None if it has no end."""
    total = trainer.estimated_stepping_batches
    return int(total) if math.isfinite(total) and total > 0 else None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _number(value: float) -> str:
    return f"{value:.4g}"
