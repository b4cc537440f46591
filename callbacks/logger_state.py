"""Number of logged rows in checkpoints, so that a resumed run logs without gaps or duplicates."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.contracts import RowCount, offers


class LoggerState(Callback):
    """Stores in checkpoints how many rows each logger has received, after flushing them to disk.

    For loggers that offer `zoo.contracts.RowCount`.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        checkpoint["logged"] = {}
        for logger in trainer.loggers:
            if offers(logger, RowCount):
                logger.flush()
                checkpoint["logged"][type(logger).__name__] = logger.rows
            else:
                logger.save()
