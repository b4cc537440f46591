"""The loggers of a run and its folder, for a new run or one that is resumed."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from zoo.checkpoints.resume import ResumePoint
from zoo.files import remove_partial
from zoo.tracking.loggers import RunCSVLogger
from zoo.tracking.run_folders import RunFolders, RunLock, RunOptions
from zoo.tracking.wandb import WandbOptions, wandb_logger


def run_loggers(
    run: RunOptions, wandb: WandbOptions, recipe: str, folders: RunFolders, resumed: ResumePoint | None = None
) -> list[Logger]:
    """Creates and locks the folder of a run, and returns its loggers: metrics.csv and Weights & Biases.

    Args:
        run: location of the run.
        wandb: options of Weights & Biases.
        recipe: name of the run if `run` has none.
        folders: creates the folder.
        resumed: run to resume, in its own folder; None for a new run.
    """
    name = run.name or recipe
    # Only rank 0 writes; the others learn its folder from Lightning, by a broadcast.
    first = getattr(rank_zero_only, "rank", 0) == 0
    if resumed is not None:
        folder = resumed.folder
    else:
        folder = folders.new(run.root, name) if first else Path(run.root) / name / "version_of_rank_0"
    if first:
        RunLock.take(folder)
        remove_partial(folder)
    rows = resumed.logged.get(RunCSVLogger.__name__, 0) if resumed else 0
    loggers: list[Logger] = [RunCSVLogger(run.root, name, folder.name, rows)]
    if (logger := wandb_logger(folder, wandb, name, first, resumed)) is not None:
        loggers.append(logger)
    return loggers
