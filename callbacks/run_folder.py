"""The run's folder, as callbacks find it, and which ranks do their work."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn


def run_folder(trainer: Trainer, missing: str = "") -> Path | None:
    """The folder of the run. Call it on every rank: Lightning agrees on the folder by a broadcast.

    Args:
        trainer: Trainer of the run.
        missing: beginning of a warning if there is no folder; empty for no warning.

    Returns:
        None for a fast_dev_run, or if the Trainer has neither a logger nor a `default_root_dir`.
    """
    folder = trainer.log_dir
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    # Without either, Lightning takes the working folder, which is not for a run's files.
    if folder is None or (not trainer.loggers and Path(folder) == Path.cwd()):
        if missing:
            rank_zero_warn(
                f"{missing}: the Trainer has no logger and no default_root_dir, so there is no folder for it"
            )
        return None
    return Path(folder)


def takes_part(trainer: Trainer) -> bool:
    """Whether this rank runs a model of which rank 0 writes the results: rank 0, or all, if each holds a shard."""
    return trainer.is_global_zero or is_sharded(trainer)


def remove_after(folder: Path, step: int) -> None:
    """Removes images and texts of later steps, which a resumed run writes again, and animations."""
    for path in folder.glob("*"):
        number = path.stem.removeprefix("step_")
        if path.suffix == ".gif" or (number.isdigit() and int(number) > step):
            path.unlink()


def is_sharded(trainer: Trainer) -> bool:
    """Whether each rank holds a part of the model only."""
    return isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """The first callback that has written a checkpoint chosen by a metric; None if there is none."""
    return next((c for c in _savers(trainer) if c.monitor and c.best_model_path), None)


def checkpoint_path(trainer: Trainer) -> str:
    """Path to the checkpoint to go on with: the best one, or the last one; empty if there is none."""
    return next((p for c in _savers(trainer) for p in (c.best_model_path, c.last_model_path) if p), "")


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
