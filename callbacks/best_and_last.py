"""The best checkpoint of a run and the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from zoo.checkpoints.restoring import confine_paths


class BestAndLastCheckpoint(ModelCheckpoint):
    """Saves `best.ckpt` by a metric, and `last.ckpt` after every validation and at the end of training.

    ModelCheckpoint's option `save_last` differs: with a metric to monitor, Lightning 2.6 writes last.ckpt only when
    there is a new best checkpoint, so that both are the same.

    Args:
        monitor: name of the metric.
        mode: "min" if lower values are better, "max" if higher values are.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)
        self._last_step = -1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best checkpoint so far if it is in this run's folder, which may have been moved."""
        super().load_state_dict(confine_paths(state_dict, self.dirpath))
        self.current_score = state_dict["current_score"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.write_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.write_last(trainer)

    def write_last(self, trainer: Trainer) -> None:
        """Writes last.ckpt, unless it is of this step already. Call it on all ranks."""
        fast = trainer.fast_dev_run  # type: ignore[attr-defined]
        if fast or self.dirpath is None or trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        trainer.save_checkpoint(self.last_model_path, self.save_weights_only)
