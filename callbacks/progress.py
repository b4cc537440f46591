"""The progress bar, and the summary of the model before it."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from rich import get_console
from rich.table import Table

from zoo._lightning import ProgressBarHooks


class ShortModelSummary(RichModelSummary):
    """Table of the modules that have parameters, without metrics, and the number of the parameters below it."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        columns = dict(summary_data)
        names = ["Name", "Type", "Params", *(["FLOPs"] if total_flops else [])]
        table = Table(header_style="bold")
        for name in names:
            table.add_column(name, justify="left" if name in ("Name", "Type") else "right")
        for row in zip(*(columns[name] for name in names), strict=True):
            if row[2].strip() != "0":
                table.add_row(*row)
        trained, total = (get_human_readable_count(count).strip() for count in (trainable_parameters, total_parameters))
        console = get_console()
        console.print(table)
        console.out(f"{total} parameters, {trained} of them trained", highlight=False)


class ShortProgressBar(ProgressBarHooks, RichProgressBar):
    """Progress bar with the number of epochs, short metric names and without a version number.

    If the length of a run is given by `max_steps` alone, Lightning's own bar shows "Epoch 3/-2". Lightning's default is
    to draw the bar a hundred times a second and to collect its numbers after every batch, which takes a fifth of the
    time of a step of a few milliseconds.

    Args:
        refresh_rate: most updates of the bar in a second; 0 for no bar.
        **options: further arguments of RichProgressBar.
    """

    def __init__(self, refresh_rate: int = 10, **options: Any) -> None:
        super().__init__(refresh_rate=refresh_rate, **options)
        self._due = -math.inf

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now >= self._due or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._due = now + 1 / self.refresh_rate if self.refresh_rate else math.inf

    def describe_epoch(self, epoch: int) -> str:
        trainer = self.trainer
        epochs: float = trainer.max_epochs or -1
        if epochs == -1 and trainer.max_steps > 0 and trainer.num_training_batches:
            epochs = math.ceil(trainer.max_steps / trainer.num_training_batches)
        return f"Epoch {epoch + 1}/{epochs}" if epochs > 0 else f"Epoch {epoch + 1}"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}
