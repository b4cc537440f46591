"""The run's folder, as callbacks find it, and which ranks do their work."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
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
    return trainer.is_global_zero or isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


def remove_after(folder: Path, step: int) -> None:
    """Removes images and texts of later steps, which a resumed run writes again, and animations."""
    for path in folder.glob("*"):
        number = path.stem.removeprefix("step_")
        if path.suffix == ".gif" or (number.isdigit() and int(number) > step):
            path.unlink()
