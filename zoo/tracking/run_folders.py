"""Folders of runs: each run has its own, and only one process at a time trains in it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import UserError
from zoo.tracking.wandb_process import finish_run


@dataclass
class RunOptions:
    """Location of runs: `<root>/<name>/version_<k>/`.

    Args:
        root: folder of all runs.
        name: name of the run's folder; by default the name of the first recipe.
    """

    root: str = "runs"
    name: str | None = None


class RunFolders:
    """Creates the folders of runs, and removes those of runs that did not start."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def new(self, root: str | Path, name: str) -> Path:
        """Creates `<root>/<name>/version_<k>` with the first free k; two runs that start at once get two folders.

        Raises:
            UserError: the folder cannot be created.
        """
        parent = Path(root) / name
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 0
            while True:
                folder = parent / f"version_{number}"
                try:
                    folder.mkdir()
                except FileExistsError:
                    number += 1
                    continue
                self._made += [folder, *missing]
                return folder
        except OSError as error:
            for made in missing:  # those that could be created
                with suppress(OSError):
                    made.rmdir()
            raise UserError(
                f"the run's folder cannot be created in {parent}: {error.strerror}; choose another --run.root"
            ) from error

    def discard(self, keep_metrics: bool = True) -> None:
        """Removes the folders that `new` created, for a run that did not start.

        Args:
            keep_metrics: keep folders that hold metrics; a folder with checkpoints is always kept.
        """
        finish_run(exit_code=1)
        for folder in self._made:
            started = (folder / "checkpoints").exists() or (keep_metrics and (folder / "metrics.csv").exists())
            if folder.name.startswith("version_") and not started:
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # not empty
                folder.rmdir()
        self._made = []


def lock_folder(folder: Path) -> int | None:
    """Locks a folder until the handle is closed or the process ends; None where the system has no such locks.

    Raises:
        OSError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


class RunLock:
    """Lock on a run's folder; the operating system releases it when the process ends."""

    _held: dict[Path, int] = {}

    @classmethod
    def take(cls, folder: Path) -> None:
        """Locks a folder.

        Raises:
            UserError: another process trains there.
        """
        try:
            handle = lock_folder(folder)
        except OSError as error:
            raise UserError(
                f"the run in {folder} is still in progress, so it cannot be resumed; leave out --ckpt_path last to "
                "start a new run"
            ) from error
        if handle is not None:
            cls._held[folder] = handle

    @classmethod
    def release(cls) -> None:
        """Releases all locks of this process."""
        for handle in cls._held.values():
            with suppress(OSError):
                os.close(handle)
        cls._held = {}
