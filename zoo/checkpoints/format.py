"""What the zoo adds to Lightning's checkpoint, and the version of that format.

    model_class   import path of the model's class
    format        version of the format
    data          what the model was trained on: class names, preprocessing, mirror symmetry
    versions      versions of Python and of the packages that wrote the file
    monitor       metric by which the best checkpoint is chosen, its mode, and its best value in the run so far

All of them are plain values. They are checked when a checkpoint is read; nothing in them is run.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.contracts import ClassNames, MirrorSymmetry, offers
from zoo.contracts import Preprocessing as HasPreprocessing
from zoo.errors import UserError, shown
from zoo.pictures.preprocessing import Preprocessing

#: Version of the format. Raised when an older version could not read a checkpoint, or would read it wrongly.
FORMAT = 1
PACKAGES = ("lightning-zoo", "lightning", "torch", "torchvision")


@dataclass(frozen=True)
class TrainingData:
    """What a model knows of the data it was trained on. None is for what the data did not tell.

    Attributes:
        class_names: one name per class.
        preprocessing: how a picture is brought to the model's input.
        mirror_symmetric: whether the mirror image of a sample has the same class.
    """

    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    mirror_symmetric: bool | None = None

    @classmethod
    def of(cls, data: object) -> TrainingData:
        """What a data module tells, see `zoo.contracts`; None tells nothing."""
        return cls(
            tuple(map(str, data.class_names)) if offers(data, ClassNames) else None,
            Preprocessing.parse(data.preprocessing) if offers(data, HasPreprocessing) else None,
            data.mirror_symmetric if offers(data, MirrorSymmetry) else None,
        )

    @classmethod
    def parse(cls, values: Any) -> TrainingData:
        """Checks plain values, such as those in a checkpoint.

        Raises:
            UserError: a value is unknown or impossible.
        """
        if not isinstance(values, Mapping) or not set(values) <= set(cls.__dataclass_fields__):
            raise UserError(f"data is {shown(values)}; it must be a mapping of {', '.join(cls.__dataclass_fields__)}")
        names, preprocessing, mirror = (values.get(name) for name in cls.__dataclass_fields__)
        if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
            raise UserError(f"data has the class_names {shown(names)}, which are not a list of strings")
        if mirror is not None and not isinstance(mirror, bool):
            raise UserError(f"data has mirror_symmetric {shown(mirror)}, which is not true or false")
        return cls(
            None if names is None else tuple(names),
            None if preprocessing is None else Preprocessing.parse(preprocessing),
            mirror,
        )

    def plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.plain(),
            "mirror_symmetric": self.mirror_symmetric,
        }


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from; `load_model` sets it as the model's attribute `origin`.

    Attributes:
        path: path to the checkpoint, or to the folder of a saved model.
        monitor: the checkpoint's entry of this name, None if it has none.
    """

    path: Path
    monitor: dict[str, Any] | None = None


def describe_model(model: Any, trainer: Any = None) -> dict[str, Any]:
    """Entries of a checkpoint that say which model it holds; see the head of this module.

    Args:
        model: model, with the attribute `trained_on`, a `TrainingData`, if it is known.
        trainer: Trainer that writes the checkpoint; None if there is none.
    """
    return {
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "format": FORMAT,
        "data": getattr(model, "trained_on", TrainingData()).plain(),
        "versions": dict(versions()),
        "monitor": None if trainer is None else _monitor(trainer),
    }


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Names and versions of Python and of the packages that a model depends on."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _monitor(trainer: Any) -> dict[str, Any] | None:
    """Metric, mode and best value of the first checkpoint callback that monitors one."""
    for callback in trainer.checkpoint_callbacks:
        if name := getattr(callback, "monitor", None):
            best = getattr(callback, "best_model_score", None)
            return {"metric": name, "mode": callback.mode, "best": None if best is None else float(best)}
    return None


def parse_description(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The entries `data`, `versions` and `monitor` of a checkpoint, checked.

    Raises:
        UserError: an entry is damaged.
    """
    known, monitor = checkpoint.get("versions") or {}, checkpoint.get("monitor")
    if not (isinstance(known, Mapping) and all(isinstance(one, str) for pair in known.items() for one in pair)):
        raise UserError(f"versions is {shown(known)}; it must map names to versions")
    if monitor is not None and not _is_monitor(monitor):
        raise UserError(f"monitor is {shown(monitor)}; it must have a metric, its mode and its best value")
    return {
        "data": TrainingData.parse(checkpoint.get("data") or {}),
        "versions": dict(known),
        "monitor": None if monitor is None else dict(monitor),
    }


def _is_monitor(monitor: Any) -> bool:
    if not isinstance(monitor, Mapping) or set(monitor) != {"metric", "mode", "best"}:
        return False
    best = monitor["best"]
    number = best is None or (isinstance(best, (int, float)) and not math.isnan(best))
    metric, mode = monitor["metric"], monitor["mode"]
    return isinstance(metric, str) and isinstance(mode, str) and mode in ("min", "max") and number
