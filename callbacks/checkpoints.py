"""The best checkpoint of a run, and the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from zoo.atomic import AtomicCheckpointIO


class BestAndLast(ModelCheckpoint):
    """Keeps `best.ckpt` by a metric, and `last.ckpt` as of the last validation and of the end of training.

    ModelCheckpoint's own `save_last` does not: with a metric to monitor, Lightning 2.6 writes last.ckpt only when there
    is a new best one, so that both are the same. Checkpoints are written atomically, unless the Trainer was given
    another way to write them.

    Args:
        monitor: the metric.
        mode: whether less of it is better, or more.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)
        self._last_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best so far, if it is in the folder of this run, wherever that has been moved to."""
        moved = {name: self._moved(state_dict.get(name)) for name in ("best_model_path", "last_model_path")}
        if moved["best_model_path"]:
            state_dict = {**state_dict, **moved, "dirpath": self.dirpath}
            for name in ("best_k_models", "kth_best_model_path"):
                state_dict[name] = _with_paths(state_dict.get(name), self._moved)
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]

    def _moved(self, path: str | None) -> str:
        """Where a file of the run's folder is now; nothing if it is not there."""
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
        """Writes last.ckpt, unless it is of this step already; to be called on all ranks."""
        fast = trainer.fast_dev_run  # type: ignore[attr-defined]
        if fast or self.dirpath is None or trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        trainer.save_checkpoint(self.last_model_path, self.save_weights_only)


def _with_paths(value: Any, change: Any) -> Any:
    """A path, or paths that values belong to, changed."""
    if isinstance(value, dict):
        return {change(path): score for path, score in value.items()}
    return change(value)
