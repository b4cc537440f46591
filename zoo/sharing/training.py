"""What is known of the training of a model: its run's configuration, and what was measured when it was saved."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: The parser in C, if PyYAML was built with it, is ten times faster.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Sections of config.yaml that are of the place of a run, not of the training.
LEFT_OUT = ("run", "wandb", "ckpt_path", "report")


@dataclass(frozen=True)
class Training:
    """The training of a model; empty where nothing is known.

    Attributes:
        recipe: name of the run.
        config: configuration of the run, without absolute paths.
        metrics: metrics of the validation after which the model was saved, by name.
    """

    recipe: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def section(self, name: str) -> tuple[str, dict[str, Any]]:
        """Class and options of the section `model` or `data`; empty where it is not known."""
        section = self.config.get(name)
        if not isinstance(section, Mapping) or not isinstance(section.get("class_path"), str):
            return "", {}
        return section["class_path"], dict(section.get("init_args") or {})


def run_of(checkpoint: Path) -> Path | None:
    """Folder of the run in whose `checkpoints/` a file lies; None if it does not lie in a run."""
    folder = checkpoint.absolute().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def read_training(run: Path | None, monitor: Mapping[str, Any] | None, config_name: str = "config.yaml") -> Training:
    """Reads the configuration and `metrics.csv` of a run.

    Args:
        run: folder of the run; None if there is none.
        monitor: metric by which the checkpoint was chosen, with its value; see `zoo.checkpoints.format`.
        config_name: name of the configuration: a run that was resumed has several.
    """
    known = {monitor["metric"]: monitor["best"]} if monitor and monitor["best"] is not None else {}
    if run is None:
        return Training(metrics=known)
    config = yaml.load((run / config_name).read_text(encoding="utf-8"), LOADER)
    config = {name: _without_paths(value) for name, value in config.items() if name not in LEFT_OUT}
    named = re.fullmatch(r"version_\d+", run.name) is not None
    return Training(run.parent.name if named else run.name, config, measured(run / "metrics.csv", known) or known)


def measured(path: Path, known: Mapping[str, float]) -> dict[str, float]:
    """Validation metrics in the last row of metrics.csv that has these values; empty if there is none.

    Args:
        path: metrics.csv.
        known: values by the names of their metrics.
    """
    found: dict[str, float] = {}
    if not known or not path.is_file():
        return found
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if all(
                row.get(name) and math.isclose(float(row[name]), value, rel_tol=1e-6) for name, value in known.items()
            ):
                found = {name: float(value) for name, value in row.items() if name.startswith("val/") and value}
    return found


def _without_paths(value: Any) -> Any:
    """The same values with the last part of absolute paths only: the others are of one machine."""
    if isinstance(value, Mapping):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value
