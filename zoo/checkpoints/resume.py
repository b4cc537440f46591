"""Finding the checkpoint that `fit --ckpt_path last` resumes from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo.checkpoints.reading import read_checkpoint
from zoo.errors import UserError, one_line

T = TypeVar("T")


@dataclass
class ResumePoint:
    """A run to resume.

    Attributes:
        path: path to the checkpoint.
        folder: folder of the run.
        logged: number of rows that each logger, by class name, had received when the checkpoint was written.
        step: number of steps after which it was written.
    """

    path: Path
    folder: Path
    logged: dict[str, int] = field(default_factory=dict)
    step: int = 0


def find_last(
    root: str | Path,
    name: str,
    difference: Callable[[Path], str],
    check: Callable[[Path], None],
    lock: Callable[[Path], None] = lambda folder: None,
    unlock: Callable[[Path], None] = lambda folder: None,
) -> ResumePoint | None:
    """Finds the newest run of a name with the same options, and its complete checkpoint with the most steps.

    The newest run is the one with the highest version. Times of files do not count: a copy has new ones, and a clock
    may be wrong. What is skipped is reported.

    Args:
        root: folder of all runs.
        name: name of the runs; runs of one name may be of different models and data.
        difference: function that says in which options the run in a folder differs; empty for none.
        check: function that raises a `UserError` for a checkpoint that cannot be loaded.
        lock: locks the folder of a run; its checkpoints are read afterwards, so that nobody is writing any.
        unlock: unlocks the folder of a run that is not resumed.

    Returns:
        None if there is no checkpoint; the run then starts from scratch.

    Raises:
        UserError: there are checkpoints, but only of runs with other options; or the run is still in progress.
    """
    parent = Path(root) / name
    others: dict[Path, str] = {}
    found = "checkpoint"
    for folder in _runs(parent):
        if not _checkpoints(folder):
            continue
        found = "complete checkpoint"
        if other := difference(folder):
            others[folder] = other
        else:
            lock(folder)
            point = _newest(folder)
            if point is not None:
                if not (other := _problem(check, point.path)):
                    for skipped, why in others.items():
                        rank_zero_info(f"Skipping {skipped}: it is another run ({why})")
                    rank_zero_info(f"Resuming {folder} from {point.path.name}, after {point.step} steps")
                    return point
                others[folder] = other
            unlock(folder)
    if others:
        folder, other = next(iter(others.items()))
        raise UserError(
            f"--ckpt_path last: {folder} is another run ({other}); give its options to resume it; for a new run, give "
            "another --run.name, or leave out --ckpt_path last"
        )
    rank_zero_info(f"--ckpt_path last: there is no {found} in {parent}, so the run starts from scratch")
    return None


def newest_checkpoint(root: str | Path, name: str, preferred: tuple[str, ...] = ("best", "last")) -> Path | None:
    """The checkpoint to name in a message: of the newest run that has one, by the order of preference."""
    for folder in _runs(Path(root) / name):
        paths = {path.stem: path for path in _checkpoints(folder) if path.is_file()}
        if paths:
            return next((paths[stem] for stem in preferred if stem in paths), max(paths.values()))
    return None


def _runs(parent: Path) -> list[Path]:
    """Folders of runs, the newest first."""
    numbers = {folder: folder.name.removeprefix("version_") for folder in parent.glob("version_*")}
    runs = [folder for folder, number in numbers.items() if number.isdecimal()]
    return sorted(runs, key=lambda folder: int(numbers[folder]), reverse=True)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/*.ckpt"))


def _problem(check: Callable[[Path], None], path: Path) -> str:
    try:
        check(path)
    except UserError as error:
        return one_line(str(error))
    return ""


def _newest(folder: Path) -> ResumePoint | None:
    """The complete checkpoint of a run with the most steps; among equal ones, last.ckpt."""
    points = [point for path in _checkpoints(folder) if (point := _attempt(_read, path))]
    points.sort(key=lambda point: (point.step, point.path.stem == "last"), reverse=True)
    return next((point for point in points if _attempt(_is_whole, point.path)), None)


def _attempt(read: Callable[[Path], T], path: Path) -> T | None:
    """What `read` finds in a file; None, with a warning, if the file is not a complete checkpoint."""
    try:
        return read(path)
    except Exception as error:  # arbitrary bytes raise arbitrary exceptions
        rank_zero_warn(f"Skipping {path}: it is not a complete checkpoint ({one_line(str(error))[:100]})")
        return None


def _read(path: Path) -> ResumePoint:
    if not path.is_file():  # a link to nowhere, a folder, a pipe, which would wait for its writer
        raise ValueError("it is not a file")
    checkpoint = read_checkpoint(path)
    step, logged = checkpoint.get("global_step"), checkpoint.get("logged")
    if not isinstance(step, int) or "loops" not in checkpoint:
        raise ValueError("it has no training state")
    counts = logged.items() if isinstance(logged, dict) else ()
    return ResumePoint(path, path.parent.parent, {name: rows for name, rows in counts if isinstance(rows, int)}, step)


def _is_whole(path: Path) -> bool:
    """Verifies the checksum of every part of the file."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} in it is damaged")
    return True
