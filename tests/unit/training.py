"""A quiet Trainer, a logger and a callback that keep what they see, for the unit tests."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer on the CPU that prints and writes nothing unless the options say so."""
    warnings.filterwarnings("ignore")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(**({"accelerator": "cpu", "num_sanity_val_steps": 0} | quiet | options))


class MemoryLogger(DummyLogger):
    """Keeps what is logged as (step, metrics)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step or 0, metrics))

    def column(self, name: str) -> dict[int, float]:
        """Values of one metric by step."""
        return {step: metrics[name] for step, metrics in self.rows if name in metrics}


class LossRecorder(Callback):
    """Keeps the batches and the losses of all backward passes."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(loss.item())
