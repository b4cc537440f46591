"""Number of logged rows in checkpoints, so that a resumed run logs without gaps or duplicates."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LoggerState(Callback):
    """Stores in checkpoints how many rows each logger has received, after flushing them to disk.

    For loggers that count their rows in the attribute `rows`.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        counts = {type(logger).__name__: getattr(logger, "rows", None) for logger in trainer.loggers}
        checkpoint["logged"] = {name: rows for name, rows in counts.items() if rows is not None}
