"""Finding the checkpoint that `fit --ckpt_path last` resumes from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo.checkpoints.reading import check_checkpoint, read_checkpoint
from zoo.errors import UserError, one_line


@dataclass
class ResumePoint:
    """A run to resume.

    Attributes:
        path: path to the checkpoint.
        folder: folder of the run.
        logged: number of rows that each logger, by class name, had received when the checkpoint was written.
    """

    path: Path
    folder: Path
    logged: dict[str, int] = field(default_factory=dict)


def find_last(root: str | Path, name: str, check: Callable[[Path], None]) -> ResumePoint | None:
    """Finds the newest valid checkpoint among the runs in `<root>/<name>`, and reports which ones it skips.

    Args:
        root: folder of all runs.
        name: name of the runs; runs of one name may be of different models and data.
        check: function that raises a `UserError` for a checkpoint that does not fit.

    Returns:
        None if there is no checkpoint; the run then starts from scratch.
    """
    parent = Path(root) / name
    candidates = sorted(parent.glob("version_*/checkpoints/*.ckpt"), key=_age, reverse=True)
    for path in candidates:
        try:
            checkpoint = _read_verified(path)
        except Exception as error:  # arbitrary bytes raise arbitrary exceptions
            rank_zero_warn(f"Skipping {path}: it is not a complete checkpoint ({one_line(str(error))[:100]})")
            continue
        try:
            check(path)
        except UserError as error:
            rank_zero_info(f"Skipping {path}: it belongs to another run ({one_line(str(error))})")
            continue
        folder = path.parent.parent
        rank_zero_info(f"Resuming {folder} from {path.name}, after {checkpoint['global_step']} steps")
        return ResumePoint(path, folder, checkpoint.get("logged", {}))
    found = "complete checkpoint of this run" if candidates else "checkpoint"
    rank_zero_info(f"--ckpt_path last: there is no {found} in {parent}, so the run starts from scratch")
    return None


def check_same_run(path: Path, model: LightningModule, data: object, data_class: str | None) -> None:
    """Checks that a checkpoint in a run's folder is of this model and was trained on this class of data.

    Args:
        path: path to the checkpoint, `<run>/checkpoints/<name>.ckpt`.
        model: model to be trained.
        data: data module that it is to be trained on; None if it is not known.
        data_class: import path of the data module; None skips the comparison.

    Raises:
        UserError: the model or the data differ.
    """
    check_checkpoint(path, model, data)
    config = path.parent.parent / "config.yaml"
    if not config.is_file() or data_class is None:
        return
    section = yaml.safe_load(config.read_text()).get("data")
    if section and section["class_path"] != data_class:
        raise UserError(f"its data is {section['class_path']}, not {data_class}")


def _age(path: Path) -> tuple[int, bool]:
    """Sort key: time of writing; among equal times last.ckpt counts as the newest."""
    return path.stat().st_mtime_ns, path.stem == "last"


def _read_verified(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after verifying the checksum of every part of the file."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} in it is damaged")
    checkpoint = read_checkpoint(path)
    if not {"loops", "global_step"} <= set(checkpoint):
        raise ValueError("it has no training state")
    return checkpoint
