"""Rendering: a pure function of the files in the folders of runs, by Jinja templates that escape everything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zoo import __version__
from zoo.files import write_output
from zoo.plotting.figures import PALETTE
from zoo.registry import recipe_files
from zoo.report import sections
from zoo.report.commands import CONFIG, Command, fill_in
from zoo.report.curves import charts_of_gradient_flow, charts_of_run, charts_of_runs, last_step
from zoo.report.options import differing_options, flatten
from zoo.report.pictures import check_inside
from zoo.report.run import FOLDER, Run, read_run

#: Name of the page in the run's folder.
PAGE = "report.html"
TEMPLATES = Path(__file__).with_name("templates")
MOST_OPTIONS = 200  # in which several runs differ


def write_report(folders: Sequence[Path], out: Path, program: str = "zoo", overwrite: bool = False) -> None:
    """Writes the report of a run, or of several runs side by side.

    Args:
        folders: folders of the runs.
        out: file to write.
        program: how the command line is started, for the commands in the report.
        overwrite: replace the file if it exists.

    Raises:
        UserError: a folder is not that of a run, or the file exists or cannot be written.
    """
    page = render_report(folders, program)
    with write_output(out, overwrite, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(page)


def render_report(folders: Sequence[Path], program: str = "zoo") -> str:
    """The report of one run, or of several side by side, as HTML that needs nothing else.

    Args:
        folders: folders of the runs.
        program: how the command line is started.

    Raises:
        UserError: a folder is not that of a run.
    """
    runs = [read_run(folder) for folder in folders]
    template, values = ("run.html", _page(runs[0], program)) if len(runs) == 1 else ("runs.html", _comparison(runs))
    return _environment().get_template(template).render(**values, version=__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "slider.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # No other script runs in the page, and it asks nothing of a network.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    environment.globals.update(palette=PALETTE, script=script, policy=policy, style=style)
    environment.filters["number"] = _number
    return environment


def _number(value: float) -> str:
    return f"{value:.4g}"


# One run


def _page(run: Run, program: str) -> dict[str, Any]:
    main, rest = run.attempt("metrics.csv", lambda: charts_of_run(run), ([], []))
    gradient = run.attempt("metrics.csv", lambda: charts_of_gradient_flow(run), [])
    pages = {
        "frames": run.attempt("samples", lambda: sections.read_frames(run), []),
        "nearest": run.attempt(f"{FOLDER}/nearest.json", lambda: sections.read_nearest(run), None),
        "mistakes": run.attempt(f"{FOLDER}/mistakes.json", lambda: sections.read_mistakes(run), None),
        "confusion": run.attempt(f"{FOLDER}/confusion.csv", lambda: _confusion(run), None),
        "tests": run.attempt("test", lambda: sections.read_tests(run), []),
        "flow": run.attempt("gradient_flow", lambda: sections.read_figures(run, "gradient_flow*.png"), []),
        "figures": run.attempt("pictures", lambda: _other_figures(run), []),
        "about": _about(run),
        "changes": run.attempt("options", lambda: sections.changes_of(run, recipe_files()), []),
        "options": run.attempt(run.config, lambda: flatten(run.training.config), {}),
        "commands": run.attempt("commands", lambda: _commands(run, program), []),
        "final": {
            name: points[-1] for name, points in run.metrics.items() if not name.endswith(("_floor", "_optimum"))
        },
    }
    return {"run": run, "main": main, "rest": rest, "gradient": gradient, "tiles": _tiles(run), **pages}


def _confusion(run: Run) -> dict[str, Any] | None:
    return sections.read_confusion(check_inside(run.folder, f"{FOLDER}/confusion.csv"))


def _other_figures(run: Run) -> list[sections.Figure]:
    """Pictures beside those that have a section of their own; of attention maps the last one."""
    attention = sections.read_figures(run, "attention/*.png")[-1:]
    return [*sections.read_figures(run, "*.png", skip=("curves", "gradient_flow")), *attention]


def _about(run: Run) -> dict[str, dict[str, str]]:
    """Tables on what was trained on what, by their titles, without the empty ones."""
    tables = {
        "Model": run.attempt("model", lambda: sections.describe_model(run), {}),
        "Data": run.attempt("data", lambda: sections.describe_data(run), {}),
        "Training": run.attempt("training", lambda: sections.describe_training(run), {}),
        "Machine and versions": run.attempt("machine", lambda: sections.describe_machine(run), {}),
    }
    return {title: rows for title, rows in tables.items() if rows}


def _tiles(run: Run) -> dict[str, tuple[str, str]]:
    """The most telling figures, each with a line on it."""
    tiles: dict[str, tuple[str, str]] = {}
    if run.chosen is not None:
        floor = f"floor {run.chosen.floor:.4g}, " if run.chosen.floor is not None else ""
        tiles[f"best {run.chosen.metric}"] = f"{run.chosen.value:.4g}", f"{floor}at step {run.chosen.step:,}"
        accuracy = run.training.metrics.get("val/acc")
        if accuracy is not None and run.chosen.metric != "val/acc":
            tiles["val/acc"] = f"{100 * accuracy:.2f}%", "of the chosen checkpoint"
    steps = run.fact("steps", kind=int)
    if steps is not None:
        tiles["steps"] = f"{steps:,}", f"epochs: {run.fact('epochs', kind=int)}"
    elif run.metrics:
        tiles["steps"] = f"{last_step(run.metrics):,}", "the last that was logged"
    sessions = run.fact("sessions", kind=list)
    if sessions:
        seconds = run.attempt("time", lambda: sum(float(one["seconds"]) for one in sessions), 0.0)
        tiles["time"] = sections.duration(seconds), "of training" if seconds else "not known"
    parameters = run.fact("model", "trainable", kind=int)
    if parameters is not None:
        tiles["parameters"] = f"{parameters:,}", "trainable"
    return tiles


def _commands(run: Run, program: str) -> list[tuple[str, str]]:
    """What to do next, and the command for it."""
    checkpoint = run.folder / (run.fact("checkpoint", "file") or "checkpoints/best.ckpt")
    given = run.fact("next", kind=list)
    if given is None and (run.folder / run.config).is_file():
        started = any(run.folder.glob("checkpoints/*.ckpt"))
        given = [Command("resume the run", f"fit --config {CONFIG} --ckpt_path last")] if started else []
        given.append(Command("repeat the run", f"fit --config {CONFIG}"))
    return [(str(why), f"{program} {fill_in(words, run.folder, checkpoint, run.config)}") for why, words in given or []]


# Several runs


def _comparison(runs: Sequence[Run]) -> dict[str, Any]:
    labels = [run.label for run in runs]
    names = [run.label if labels.count(run.label) == 1 else str(run.folder) for run in runs]
    by_name = dict(zip(names, runs, strict=True))
    main, rest = charts_of_runs(by_name)
    budget = sections.BUDGET // len(runs)
    metrics = sorted({name for run in runs for name in run.metrics if not name.startswith("gradient_flow/")})
    return {
        "runs": by_name,
        "main": main,
        "rest": rest,
        "rows": {name: _summary_row(run) for name, run in by_name.items()},
        "differing": differing_options([flatten(run.training.config) for run in runs])[:MOST_OPTIONS],
        "metrics": {name: [_values(run, name) for run in runs] for name in metrics},
        "frames": {name: sections.read_frames(run, budget) for name, run in by_name.items()},
    }


def _values(run: Run, metric: str) -> tuple[float | None, float | None]:
    """Value of a metric for the chosen checkpoint, and the last one."""
    points = run.metrics.get(metric)
    return run.training.metrics.get(metric), points[-1][1] if points else None


def _summary_row(run: Run) -> dict[str, str]:
    chosen = run.chosen
    steps = run.fact("steps", kind=int)
    sessions: Sequence[Mapping[str, Any]] = run.fact("sessions", kind=list) or []
    seconds = run.attempt("time", lambda: sum(float(one["seconds"]) for one in sessions), 0.0)
    return {
        "model": run.class_of("model"),
        "data": run.class_of("data"),
        "chosen by": chosen.metric if chosen else "",
        "best": f"{chosen.value:.4g}" if chosen else "",
        "floor": f"{chosen.floor:.4g}" if chosen and chosen.floor is not None else "",
        "at step": f"{chosen.step:,}" if chosen else "",
        "steps": f"{steps:,}" if steps is not None else "not ended",
        "time": sections.duration(seconds) if seconds else "",
        "parameters": sections.as_count(run.fact("model", "trainable", kind=int)),
    }
