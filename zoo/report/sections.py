"""The sections of a report, each from files in the run's folder, as plain values for the template."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.report.curves import last_step
from zoo.report.options import Change, as_text, changed_options, class_name, flatten, merged
from zoo.report.pictures import Picture, check_inside, files_of, read_picture, step_of, within_budget
from zoo.report.run import FOLDER, Run
from zoo.sharing.training import LOADER

MOST_FRAMES, FRAMES_ON_PAPER = 24, 4
#: Bytes of pictures before they are encoded, so that a report can be mailed.
BUDGET = 4 * 2**20
MOST_TEXT = 4000  # characters of one file of texts
MOST_CELLS = 25  # classes up to which a confusion matrix is a table
MOST_PAIRS = 12  # confused pairs that are listed
MOST_FIGURES = 12
COPY = 1.0  # distance in gray levels below which a sample is called a copy


class Frame(NamedTuple):
    """Samples at one step: a picture, or text.

    Attributes:
        step: optimizer step.
        picture: the picture; None for text.
        text: the text; empty for a picture.
        printed: whether it is on paper, where there is no slider.
    """

    step: int
    picture: Picture | None
    text: str
    printed: bool


class Figure(NamedTuple):
    """A picture with its caption."""

    caption: str
    picture: Picture


def read_frames(run: Run, budget: int = BUDGET) -> list[Frame]:
    """Samples over the course of training, evenly spaced if they are many."""
    files = [path for path in files_of(run.folder, "samples/step_*") if step_of(path) is not None]
    pictures = [path for path in files if path.suffix == ".png"]
    chosen = within_budget(pictures or [path for path in files if path.suffix == ".txt"], MOST_FRAMES, budget)
    chosen.sort(key=lambda path: step_of(path) or 0)
    frames: list[Frame] = []
    for path in chosen:
        picture = read_picture(path) if pictures else None
        text = "" if pictures else _read_text(path)
        if picture or text:
            frames.append(Frame(step_of(path) or 0, picture, text, False))
    kept = {round(k * (len(frames) - 1) / (FRAMES_ON_PAPER - 1)) for k in range(FRAMES_ON_PAPER)}
    return [frame._replace(printed=index in kept) for index, frame in enumerate(frames)]


def _read_text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MOST_TEXT + 1)
    return text[:MOST_TEXT] + ("…" if len(text) > MOST_TEXT else "")


def read_figures(run: Run, pattern: str, skip: Sequence[str] = ()) -> list[Figure]:
    """Pictures in the run's folder by a pattern, named by their files."""
    found = []
    for path in files_of(run.folder, pattern):
        if not path.stem.startswith(tuple(skip)) and (picture := read_picture(path)) is not None:
            found.append(Figure(path.stem.replace("_", " "), picture))
    return found[:MOST_FIGURES]


# Findings


def read_mistakes(run: Run) -> dict[str, Any] | None:
    """The most confident mistakes on validation samples; None if they were not looked for."""
    found = _read_json(run, "mistakes.json")
    if found is None:
        return None
    mistakes = []
    for one in found["mistakes"]:
        place = one.get("path") or f"sample {one['index']}"
        probabilities = {name: _percent(float(one[name])) for name in ("probability", "true_probability")}
        mistakes.append({**one, **probabilities, "place": place, "picture": _picture(run, one.get("picture"))})
    seen, wrong = int(found["seen"]), int(found["wrong"])
    share = _percent(wrong / max(1, seen))
    return {"seen": seen, "wrong": wrong, "share": share, "weights": found.get("weights"), "mistakes": mistakes}


def read_nearest(run: Run) -> dict[str, Any] | None:
    """Samples beside their nearest training pictures; None if they were not looked for."""
    found = _read_json(run, "nearest.json")
    if found is None:
        return None
    distances = [float(pair["distance"]) for pair in found["pairs"]]
    pictures = [{name: _picture(run, pair.get(name)) for name in ("sample", "nearest")} for pair in found["pairs"]]
    pairs = [{**shown, "distance": distance} for shown, distance in zip(pictures, distances, strict=True)]
    usual = found.get("held_out")
    return {
        "pairs": pairs,
        "searched": int(found["searched"]),
        "held_out": None if usual is None else float(usual),
        "held_out_samples": int(found["held_out_samples"]),
        "weights": found.get("weights"),
        "copies": sum(distance < COPY for distance in distances),
    }


def _read_json(run: Run, name: str) -> dict[str, Any] | None:
    path = check_inside(run.folder, f"{FOLDER}/{name}")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _picture(run: Run, name: Any) -> Picture | None:
    """A picture of the findings by the name of its file."""
    found = files_of(run.folder / FOLDER, Path(name).name) if isinstance(name, str) and name.endswith(".png") else []
    return read_picture(found[0]) if found else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def read_confusion(path: Path) -> dict[str, Any] | None:
    """A confusion matrix as a table, or its most frequent mistakes if there are many classes; None if there is none."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    names, counts = head[1:], [[int(float(cell)) for cell in row[1:]] for row in rows]
    if not names or len(counts) != len(names) or any(len(row) != len(names) for row in counts):
        raise ValueError("it is no square")
    total, right = sum(map(sum, counts)), sum(row[index] for index, row in enumerate(counts))
    pairs = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    table = [
        (name, [(count, (count / max(1, sum(row))) ** 0.5) for count in row], _percent(row[index] / max(1, sum(row))))
        for index, (name, row) in enumerate(zip(names, counts, strict=True))
    ]
    return {
        "names": names,
        "table": table if len(names) <= MOST_CELLS else [],
        "pairs": [(names[i], names[j], count) for count, i, j in sorted(pairs, reverse=True)[:MOST_PAIRS]],
        "total": total,
        "accuracy": _percent(right / max(1, total)),
    }


def read_tests(run: Run) -> list[dict[str, Any]]:
    """Scores of each class that tests have left in the run's folder, the latest test first."""
    found = []
    for path in sorted(files_of(run.folder, "test*/classes.csv"), key=lambda path: -path.stat().st_mtime):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        scores = [
            {"name": row["class_name"], **{key: f"{float(row[key]):.3f}" for key in ("precision", "recall", "f1")}}
            | {"support": f"{int(float(row['support'])):,}"}
            for row in rows
        ]
        confusion = read_confusion(check_inside(run.folder, f"{path.parent.name}/confusion.csv"))
        found.append({"folder": path.parent.name, "scores": scores, "confusion": confusion})
    return found


# Facts


def changes_of(run: Run, recipes: Mapping[str, Path]) -> list[Change]:
    """Options of the run that are not those of its recipe: as its program has noted them, or by the run's name.

    Args:
        run: the run.
        recipes: recipes of the package by their file names.
    """
    noted = run.fact("changed", kind=list)
    if noted is not None:
        return [
            Change(str(option), None if recipe is None else str(recipe), str(value)) for option, recipe, value in noted
        ]
    path = recipes.get(f"{run.training.recipe}.yaml")
    if path is None or not run.training.config:
        return []
    recipe = merged([yaml.load(path.read_text(encoding="utf-8"), LOADER)])
    return changed_options(recipe, flatten(run.training.config))


def describe_model(run: Run) -> dict[str, str]:
    """Rows on the model."""
    shape = run.fact("model", "input_shape", kind=list)
    parts = run.fact("model", "parts", kind=list) or []
    listed = [f"{name}: {kind}, {as_count(count)}" for name, kind, count in parts if isinstance(count, int)]
    return _known(
        {
            "class": run.class_of("model"),
            "what it is": run.fact("model", "summary"),
            "trainable parameters": as_count(run.fact("model", "trainable", kind=int)),
            "parts, with parameters": "\n".join(listed),
            "input": " x ".join(map(str, shape)) if shape else "",
        }
    )


def describe_data(run: Run) -> dict[str, str]:
    """Rows on the data."""
    classes = run.fact("data", "num_classes", kind=int)
    options = run.training.section("data")[1]
    told = {name: as_text(value) for name, value in options.items() if not isinstance(value, Mapping)}
    told |= {name: class_name(value["class_path"]) for name, value in options.items() if _is_class(value)}
    skipped = ("batch_size", "eval_batch_size", "seed", "drop_last")
    return _known(
        {
            "class": run.class_of("data"),
            "what it is": run.fact("data", "summary"),
            "training samples": as_count(run.fact("data", "train", kind=int)),
            "validation samples": as_count(run.fact("data", "val", kind=int)),
            "classes": as_count(classes) if classes else "",
            "batch size": as_count(run.fact("data", "batch_size", kind=int) or options.get("batch_size")),
            "options": ", ".join(f"{k} {v}" for k, v in told.items() if v != "null" and k not in skipped),
        }
    )


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def describe_training(run: Run) -> dict[str, str]:
    """Rows on the course of training."""
    steps = run.fact("steps", kind=int)
    seed = run.training.config.get("seed_everything")
    reasons = run.fact("end", kind=list) or []
    chosen = run.chosen
    best = ""
    if chosen is not None:
        name = run.fact("checkpoint", "file")
        best = f"{chosen.metric} {chosen.value:.4g} at step {chosen.step:,}, the {_least(chosen.mode)}"
        best += f"; in {Path(name).name}" if name else ""
    return _known(
        {
            "recipe": ", ".join(map(str, run.fact("recipes", kind=list) or [])) or run.training.recipe,
            "command": run.fact("command") or "",
            "steps": as_count(steps) if steps is not None else f"{last_step(run.metrics):,}, the last that was logged",
            "epochs": as_count(run.fact("epochs", kind=int)),
            "end": "\n".join(map(str, reasons)) if run.ended else "training has not ended, or was interrupted",
            "time": time_of(run),
            "seed": "" if seed is None else as_text(seed),
            "chosen checkpoint": best,
        }
    )


def _least(mode: str) -> str:
    return "highest" if mode == "max" else "lowest"


def time_of(run: Run) -> str:
    """Time of training in words, and what of it is not known; empty if nothing is."""
    sessions = [one for one in run.fact("sessions", kind=list) or [] if isinstance(one, Mapping)]
    if not sessions:
        return ""
    seconds = sum(float(one["seconds"]) for one in sessions)
    began = sessions[0]
    parts = [duration(seconds)]
    if began.get("first_step"):
        parts.append(f"from step {began['first_step']:,}, at which it was resumed")
    elif len(sessions) > 1:
        parts.append(f"in {len(sessions)} parts, resumed at step {sessions[-1]['first_step']:,}")
    parts.append(f"started {str(began['started']).replace('T', ' ').replace('+00:00', ' UTC')}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time in words: 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def describe_machine(run: Run) -> dict[str, str]:
    """Rows on hardware and versions."""
    hardware = run.fact("hardware", kind=Mapping) or {}
    devices, accelerator = hardware.get("devices"), hardware.get("accelerator")
    on = f"{devices} x {hardware.get('device') or accelerator}" if accelerator else ""
    memory = hardware.get("device_memory")
    versions = run.fact("versions", kind=Mapping) or {}
    return _known(
        {
            "trained on": on,
            "strategy": hardware.get("strategy") if devices != 1 else "",
            "precision": hardware.get("precision"),
            "memory of the device": f"{memory / 2**30:.2f} GiB at most" if isinstance(memory, int) else "",
            "processor": hardware.get("processor"),
            "cores, threads": f"{hardware.get('cores')}, {hardware.get('threads')}" if hardware else "",
            "system": hardware.get("system"),
            **{str(name): str(version) for name, version in versions.items()},
        }
    )


def as_count(value: Any) -> str:
    """A whole number with separators; empty for None, and text for anything else."""
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def _known(rows: Mapping[str, Any]) -> dict[str, str]:
    """Rows that have a value, as text."""
    return {name: str(value) for name, value in rows.items() if value not in (None, "")}
