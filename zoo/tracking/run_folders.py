"""Folders of runs: each run has its own, and only one process at a time trains in it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

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
        """Creates and locks `<root>/<name>/version_<k>`; two runs that start at once get two folders.

        k is the first free number, or that of an empty folder, which a run leaves that is killed as it starts.

        Raises:
            UserError: the folder cannot be created.
        """
        parent = Path(root) / name
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = next(folder for k in count() if _claim(folder := parent / f"version_{k}"))
        except OSError as error:
            for made in missing:  # those that could be created
                with suppress(OSError):
                    made.rmdir()
            raise UserError(
                f"the run's folder cannot be created in {parent}: {error.strerror}; choose another --run.root"
            ) from error
        self._made += [folder, *missing]
        return folder

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
    """Locks a folder until the handle is closed or the process ends; None where there are no such locks.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        rank_zero_info(
            f"{folder} cannot be locked ({error.strerror}), so nothing keeps a second process from working in it"
        )
        return None
    return handle


def _claim(folder: Path) -> bool:
    """Creates a folder, or takes one that is empty, and locks it; False if it is another run's."""
    try:
        folder.mkdir()
        created = True
    except FileExistsError:
        created = False
    if not _is_empty(folder):
        return False
    try:
        handle = lock_folder(folder)
    except BlockingIOError:
        return False
    if handle is None:
        return created  # without locks, a run may be starting in an empty folder
    # Meanwhile another process may have used it, or removed it.
    if _is_empty(folder) and os.path.samestat(os.fstat(handle), folder.stat()):
        RunLock.hold(folder, handle)
        return True
    os.close(handle)
    return False


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:  # a file, a link to nowhere, a folder that may not be read, or one that has been removed
        return False


class RunLock:
    """Lock on a run's folder; the operating system releases it when the process ends."""

    _held: dict[Path, int | None] = {}

    @classmethod
    def take(cls, folder: Path) -> None:
        """Locks a folder, unless this process has locked it already.

        Raises:
            UserError: another process trains there.
        """
        if folder in cls._held:
            return
        try:
            cls.hold(folder, lock_folder(folder))
        except BlockingIOError as error:
            raise UserError(
                f"the run in {folder} is still in progress, so it cannot be resumed; leave out --ckpt_path last to "
                "start a new run"
            ) from error

    @classmethod
    def hold(cls, folder: Path, handle: int | None) -> None:
        """Keeps the handle of a locked folder; None if it cannot be locked."""
        cls._held[folder] = handle

    @classmethod
    def removed(cls) -> Path | None:
        """A folder that has been removed since it was locked; None if there is none."""
        for folder, handle in cls._held.items():
            try:
                found = folder.stat()
            except OSError:
                return folder
            if handle is not None and not os.path.samestat(found, os.fstat(handle)):  # another one of this name
                return folder
        return None

    @classmethod
    def release(cls, *folders: Path) -> None:
        """Releases the locks of these folders; without any, all locks of this process."""
        for folder in folders or tuple(cls._held):
            handle = cls._held.pop(folder, None)
            if handle is not None:
                with suppress(OSError):
                    os.close(handle)
