"""Going on with a run that ended before its time, in its own folder: `fit --ckpt_path last`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo.atomic import PARTIAL
from zoo.checkpoints import read_checkpoint
from zoo.errors import UserError
from zoo.messages import one_line


@dataclass
class Continued:
    """A run to go on with.

    Attributes:
        path: of the checkpoint.
        folder: of the run.
        logged: by the name of each logger's class, how many rows it had been given when the checkpoint was written.
    """

    path: Path
    folder: Path
    logged: dict[str, int] = field(default_factory=dict)


def find_last(root: str | Path, name: str, check: Callable[[Path], None]) -> Continued | None:
    """The newest checkpoint that is whole and fits, among the runs in `<root>/<name>`; says which, and which do not.

    Args:
        root: folder of all runs.
        name: of this kind of run; runs of one name may be of different models and data.
        check: raises a `UserError` for a checkpoint that does not fit what is to be trained.

    Returns:
        None where there is none, with a word on it: a run that is to go on whenever it is started has a first time.
    """
    parent = Path(root) / name
    candidates = sorted(parent.glob("version_*/checkpoints/*.ckpt"), key=_age, reverse=True)
    for path in candidates:
        try:
            checkpoint = _read(path)
        except Exception as error:  # the bytes can be anything
            rank_zero_warn(f"{path} is left out, since it is no whole checkpoint ({one_line(str(error))[:100]})")
            continue
        try:
            check(path)
        except UserError as error:
            rank_zero_info(f"{path} is left out, since it is of another run ({one_line(str(error))})")
            continue
        folder = path.parent.parent
        step = checkpoint["global_step"]
        rank_zero_info(f"Going on with {folder} from {path.name}, after {step} steps")
        return Continued(path, folder, checkpoint.get("logged", {}))
    found = "of this run that is whole" if candidates else "of it"
    rank_zero_info(f"--ckpt_path last: in {parent} is no checkpoint {found}, so the run starts from the beginning")
    return None


def _age(path: Path) -> tuple[int, bool]:
    """When it was written; of one moment, the one that is called last."""
    return path.stat().st_mtime_ns, path.stem == "last"


def _read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, whose every byte is checked."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} in it is damaged")
    checkpoint = read_checkpoint(path)
    if not {"loops", "global_step"} <= set(checkpoint):
        raise ValueError("it holds no run to go on with")
    return checkpoint


class RunLock:
    """A folder of a run is one process's at a time; the system takes the lock back when the process ends."""

    _held: dict[Path, int] = {}

    @classmethod
    def take(cls, folder: Path) -> None:
        """Takes the lock of a folder.

        Raises:
            UserError: another process trains there.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise UserError(
                f"the run in {folder} is still going, so another process cannot go on with it; leave out --ckpt_path "
                "last for a run of its own"
            ) from error
        cls._held[folder] = handle

    @classmethod
    def release(cls) -> None:
        """Gives back all locks of this process."""
        for handle in cls._held.values():
            with suppress(OSError):
                os.close(handle)
        cls._held = {}


def remove_partial(folder: Path) -> None:
    """Removes what a killed process had begun to write."""
    for path in folder.rglob(f".*{PARTIAL}"):
        with suppress(OSError):
            path.unlink()


class LoggedSoFar(Callback):
    """Notes in checkpoints how much has been logged, so that the run goes on without gaps; it is then on the disk.

    Of loggers that count what they are given in `rows`.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        counts = {type(logger).__name__: getattr(logger, "rows", None) for logger in trainer.loggers}
        checkpoint["logged"] = {name: rows for name, rows in counts.items() if rows is not None}


class StaysStopped(Callback):
    """A run that early stopping has ended is at its end when it is gone on with, too."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.early_stopping_callbacks:
            stopping: Any = callback
            if trainer.ckpt_path and stopping.wait_count >= stopping.patience:
                rank_zero_info(
                    f"The run had been stopped early by {stopping.monitor}, so there is nothing to go on with"
                )
                trainer.should_stop = True
