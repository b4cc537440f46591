"""A run: its folder, its name, and the logger of its metrics.csv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from zoo.checkpoints.resume import ResumePoint
from zoo.files import remove_partial
from zoo.tracking.loggers import RunCSVLogger
from zoo.tracking.run_folders import RunFolders, RunLock, RunOptions


@dataclass
class Run:
    """A run that is about to start.

    Attributes:
        folder: folder of the run, which exists and is locked; only rank 0 knows it, the others learn it from Lightning,
            by a broadcast.
        name: name of the run.
        first: whether this is rank 0, which alone writes.
        resumed: where the run is resumed from; None for a new run.
    """

    folder: Path
    name: str
    first: bool
    resumed: ResumePoint | None = None

    def rows_logged(self, logger: type) -> int:
        """Number of rows that a logger had received when the checkpoint was written from which the run is resumed."""
        return self.resumed.logged.get(logger.__name__, 0) if self.resumed else 0


def is_rank_0() -> bool:
    """Whether this process has rank 0, which alone writes; before there is a Trainer, too."""
    return getattr(rank_zero_only, "rank", 0) == 0


def open_run(options: RunOptions, recipe: str, folders: RunFolders, resumed: ResumePoint | None = None) -> Run:
    """Creates and locks the folder of a run.

    Args:
        options: location of the run.
        recipe: name of the run if `options` has none.
        folders: creates the folder.
        resumed: run to resume, in its own folder; None for a new run.

    Raises:
        UserError: the folder cannot be created, or another process trains in it.
    """
    name = options.name or recipe
    first = is_rank_0()
    if resumed is not None:
        folder = resumed.folder
    else:
        folder = folders.new(options.root, name) if first else Path(options.root) / name / "version_of_rank_0"
    if first:
        RunLock.take(folder)  # a new one is locked already, and so is one that `find_last` has found
        remove_partial(folder)
    return Run(folder, name, first, resumed)


def metrics_logger(run: Run) -> RunCSVLogger:
    """The logger of metrics.csv, the run's own record. As the first logger, it tells Lightning the run's folder."""
    root = run.folder.parent.parent
    return RunCSVLogger(str(root), run.folder.parent.name, run.folder.name, run.rows_logged(RunCSVLogger))
