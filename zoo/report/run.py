"""Reading the folder of a run: configuration, metrics, and the facts that were left when training ended.

    config.yaml         options of the run; config-1.yaml and so on of those after it was resumed
    metrics.csv         what was logged
    report/facts.json   what only the program that trained knew: sizes, times, hardware, commands

The last is written by `zoo.callbacks.RunReport`.

Each of them can be missing or damaged, as after a crash or in a run of somebody else. Nothing in them is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.errors import UserError, as_word
from zoo.report.metrics import Metrics, read_metrics
from zoo.report.options import class_name
from zoo.report.pictures import check_inside, files_of
from zoo.sharing.training import LOADER, Training, measured, read_training

#: Folder, in that of the run, of what was kept for the report.
FOLDER = "report"
FACTS = f"{FOLDER}/facts.json"
#: Files by which the folder of a run is known.
MARKS = ("config.yaml", "metrics.csv", FACTS)
#: What a damaged file can raise when it is read.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, yaml.YAMLError)


class Chosen(NamedTuple):
    """The best value of the metric by which the checkpoint is chosen.

    Attributes:
        metric: name of the metric.
        mode: "min" if lower values are better, "max" if higher values are.
        value: best value.
        step: step at which it was measured.
        floor: value of real data, or the optimum; None if it was not logged.
    """

    metric: str
    mode: str
    value: float
    step: int
    floor: float | None


@dataclass
class Run:
    """What the folder of a run says.

    Attributes:
        folder: folder of the run.
        label: name of the run and of its own folder.
        training: configuration without absolute paths, and the metrics of the chosen checkpoint.
        metrics: points (step, value) by the name of the metric.
        facts: what was left when training ended; empty for a run that did not end.
        chosen: best value of the metric by which the checkpoint is chosen; None if it is not known.
        config: name of the latest configuration.
        problems: sentences on files that cannot be read.
    """

    folder: Path
    label: str
    training: Training = field(default_factory=Training)
    metrics: Metrics = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    chosen: Chosen | None = None
    config: str = "config.yaml"
    problems: list[str] = field(default_factory=list)

    def fact(self, *keys: str, kind: type | tuple[type, ...] = str) -> Any:
        """A value of `facts` below some keys; None if it is missing, or of another type."""
        value: Any = self.facts
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    def attempt(self, file: str, read: Callable[[], Any], otherwise: Any = None) -> Any:
        """What `read` returns; `otherwise` if the file is damaged, which is noted as a problem."""
        try:
            return read()
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            self.problems.append(f"{file} is left out, because it cannot be read: {reason}")
            return otherwise

    @property
    def ended(self) -> bool:
        """Whether training has ended as it should."""
        return bool(self.facts)

    def class_of(self, section: str) -> str:
        """Name of the class of the model or of the data; empty if it is not known."""
        return class_name(self.fact(section, "class") or self.training.section(section)[0])


def check_run(folder: Path) -> None:
    """Raises a `UserError` unless the folder is that of a run."""
    if folder.is_file():
        inside = folder.absolute().parent.parent
        run = as_word(inside) if is_run(inside) else "runs/gan/version_0"
        raise UserError(f"{folder} is a file; give the folder of the run, such as {run}")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder of a run, such as runs/gan/version_0")
    if not is_run(folder):
        below = sorted((path for path in folder.glob("*") if is_run(path)), key=lambda path: path.stat().st_mtime)
        if below:
            raise UserError(f"{folder} holds runs and is none itself; give one or more of them, such as {below[-1]}")
        raise UserError(f"{folder} is not the folder of a run: it has neither config.yaml nor metrics.csv")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return folder.is_dir() and any((folder / name).is_file() for name in MARKS)


def read_run(folder: Path) -> Run:
    """Reads the folder of a run.

    Raises:
        UserError: it is not the folder of a run.
    """
    check_run(folder)
    place = folder.absolute()
    run = Run(folder, f"{place.parent.name}/{place.name}" if place.parent.name else place.name)
    run.metrics = run.attempt("metrics.csv", lambda: read_metrics(check_inside(folder, "metrics.csv")), {})
    run.facts = run.attempt(FACTS, lambda: _read_facts(check_inside(folder, FACTS)), {})
    run.config = _latest_config(folder)
    run.training = run.attempt(run.config, lambda: _read_training(folder, run.config), Training(place.parent.name))
    run.chosen = _chosen(run)
    if run.chosen is not None:
        known = {run.chosen.metric: run.chosen.value}
        found: dict[str, float] = run.attempt(
            "metrics.csv", lambda: measured(check_inside(folder, "metrics.csv"), known), {}
        )
        run.training = replace(run.training, metrics=found or known)
    return run


def _read_facts(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, Mapping):
        raise ValueError("it is no mapping")
    return facts


def _latest_config(folder: Path) -> str:
    """Name of the configuration of the latest start of a run."""
    found = [path for path in files_of(folder, "config*.yaml") if re.fullmatch(r"config(-\d+)?", path.stem)]
    return max(found, key=lambda path: int(path.stem[7:] or 0)).name if found else "config.yaml"


def _read_training(folder: Path, name: str) -> Training:
    path = check_inside(folder, name)
    if not path.is_file():
        return Training(folder.absolute().parent.name)
    text = path.read_text(encoding="utf-8")
    # A run writes none, and nested ones can stand for billions of values.
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, LOADER)):
        raise ValueError("it has aliases of YAML")
    return read_training(folder, None, name)


def _chosen(run: Run) -> Chosen | None:
    """The best value of the metric that a checkpoint callback monitors, as far as it was logged."""
    metric, mode = run.fact("checkpoint", "metric"), run.fact("checkpoint", "mode")
    if metric is None:
        trainer = run.training.config.get("trainer")
        callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
        for callback in callbacks if isinstance(callbacks, list) else ():
            options = callback.get("init_args") if isinstance(callback, Mapping) else None
            if isinstance(options, Mapping) and "Checkpoint" in str(callback.get("class_path")):
                metric, mode = options.get("monitor"), options.get("mode", "min")
                break
    points = run.metrics.get(metric or "")
    if not points:
        return None
    better = max if mode == "max" else min
    step, value = better(points, key=lambda point: point[1])
    kept = run.fact("checkpoint", "value", kind=(int, float))  # long curves are thinned
    if kept is not None and abs(kept - value) > 1e-6 * abs(kept) and better(kept, value) == kept:
        value = kept
    return Chosen(str(metric), "max" if mode == "max" else "min", value, step, floor_of(run.metrics, str(metric)))


def floor_of(metrics: Metrics, name: str) -> float | None:
    """Last value of the floor or the optimum of a metric; None if there is none."""
    points = metrics.get(f"{name}_floor") or metrics.get(f"{name}_optimum")
    return points[-1][1] if points else None
