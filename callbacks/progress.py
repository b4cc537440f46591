"""The progress bar, and the summary of the model before it."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from rich import get_console

from zoo._lightning import ProgressBarHooks


class ShortModelSummary(RichModelSummary):
    """Lightning's table of modules and parameters, without the line of FLOPs where they were not counted."""

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
        sizes = (total_parameters, trainable_parameters, model_size)
        console = get_console()
        with console.capture() as captured:
            RichModelSummary.summarize(summary_data, *sizes, total_training_modes, total_flops, **summarize_kwargs)
        lines = captured.get().splitlines(keepends=True)
        console.out(
            "".join(line for line in lines if total_flops or "Total FLOPs" not in line), end="", highlight=False
        )


class ShortProgressBar(ProgressBarHooks, RichProgressBar):
    """Progress bar with the number of epochs, short metric names and without a version number.

    If the length of a run is given by `max_steps` alone, Lightning's own bar shows "Epoch 3/-2".
    """

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
