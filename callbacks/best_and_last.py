"""The best checkpoint of a run and the last one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn


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
        moved = {name: self._moved(state_dict.get(name)) for name in ("best_model_path", "last_model_path")}
        if moved["best_model_path"]:
            state_dict = {**state_dict, **moved, "dirpath": self.dirpath}
            for name in ("best_k_models", "kth_best_model_path"):
                state_dict[name] = _map_paths(state_dict.get(name), self._moved)
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]

    def _moved(self, path: str | None) -> str:
        """Path of a checkpoint in the run's current folder; empty if it is not there."""
        here = Path(self.dirpath or "") / Path(path or "").name
        return str(here) if path and self.dirpath and here.is_file() else ""

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


def _map_paths(value: Any, change: Callable[[Any], str]) -> Any:
    """Changes a path, or the paths that are keys of a dictionary."""
    if isinstance(value, dict):
        return {change(path): score for path, score in value.items()}
    return change(value)
