"""Resuming a run that early stopping has ended."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class StayStopped(Callback):
    """Keeps an early-stopped run stopped on resume."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.early_stopping_callbacks:
            stopping: Any = callback
            if trainer.ckpt_path and stopping.wait_count >= stopping.patience:
                rank_zero_info(f"The run was stopped early by {stopping.monitor}, so there is nothing to resume")
                trainer.should_stop = True
