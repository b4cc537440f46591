"""Which curves of metrics stand together in which chart, for one run and for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zoo.report.charts import Chart, Curve, draw_chart
from zoo.report.metrics import Metrics
from zoo.report.run import Chosen, Run

CONSTANTS = {"_floor": "floor", "_optimum": "optimum"}
#: Beginning of the names of metrics that have a section of their own.
GRADIENT_FLOW = "gradient_flow/"
MOST_CHARTS = 60  # of one section


def quantity_of(name: str) -> str:
    """The quantity of a metric: `fd` of `val/fd` and of `val/fd_floor`."""
    quantity = name.split("/", 1)[-1]
    for ending in CONSTANTS:
        quantity = quantity.removesuffix(ending)
    return quantity


def last_step(metrics: Metrics) -> int:
    """The last step at which anything was logged, 0 if nothing was."""
    return max((points[-1][0] for points in metrics.values()), default=0)


def steps_of(metrics: Metrics) -> int:
    """Number of steps that were logged, of which the first has the number 0."""
    return last_step(metrics) + 1


def charts_of_run(run: Run) -> tuple[list[Chart], list[Chart]]:
    """Charts of one run, a quantity each, training and validation together.

    Returns:
        The charts of losses and of what is measured in validation, that of the chosen metric first; and all others.
    """
    panels: dict[str, list[str]] = {}
    for name in sorted(run.metrics):
        if not name.startswith(GRADIENT_FLOW):
            panels.setdefault(quantity_of(name), []).append(name)
    main: list[tuple[int, Chart]] = []
    rest: list[Chart] = []
    for quantity, names in panels.items():
        chart = _chart(quantity, names, run.metrics, run.chosen)
        if chart is None:
            continue
        chosen = run.chosen is not None and run.chosen.metric in names
        held_out = any(not name.startswith("train/") for name in names)
        if chosen or held_out or quantity.startswith("loss"):
            main.append((0 if chosen else 1 if held_out else 2, chart))
        else:
            rest.append(chart)
    return [chart for _, chart in sorted(main, key=lambda pair: pair[0])][:MOST_CHARTS], rest[:MOST_CHARTS]


def charts_of_gradient_flow(run: Run) -> list[Chart]:
    """Charts of what `GradientFlow` logs, a quantity each, with a curve for each network."""
    panels: dict[str, dict[str, Metrics]] = {}
    for name in sorted(run.metrics):
        if name.startswith(GRADIENT_FLOW):
            network, _, quantity = name.removeprefix(GRADIENT_FLOW).rpartition("/")
            panels.setdefault(quantity, {})[network] = {name: run.metrics[name]}
    charts = []
    for quantity, networks in panels.items():
        curves = [
            Curve(network or quantity, points, style)
            for style, (network, found) in enumerate(networks.items())
            for points in found.values()
        ]
        charts.append(draw_chart(quantity.replace("_", " "), curves, steps_of(run.metrics)))
    return charts[:MOST_CHARTS]


def _chart(quantity: str, names: Sequence[str], metrics: Metrics, chosen: Chosen | None) -> Chart | None:
    """Chart of one quantity; None if nothing but its floor is known."""
    curves, constants = [], []
    for name in names:
        label = next((word for ending, word in CONSTANTS.items() if name.endswith(ending)), None)
        if label is not None:
            constants.append(Curve(label, metrics[name], floor=True))
            continue
        # Training and validation have the same style in all charts.
        style = {"train": 0, "val": 1, "test": 2}.get(name.split("/")[0], 3)
        curves.append(Curve(name, metrics[name], style, best=_best(name, metrics, chosen)))
    if not curves:
        return None
    return draw_chart(curves[0].label if len(curves) == 1 else quantity, [*curves, *constants], steps_of(metrics))


def _best(name: str, metrics: Metrics, chosen: Chosen | None) -> int | None:
    """Index of the point of the chosen checkpoint."""
    if chosen is None or chosen.metric != name:
        return None
    return next((index for index, (step, _) in enumerate(metrics[name]) if step == chosen.step), None)


def charts_of_runs(runs: Mapping[str, Run]) -> tuple[list[Chart], list[Chart]]:
    """Charts of several runs, a metric each, with a curve for each run that has it.

    A floor that all runs share is one line.

    Args:
        runs: runs by their labels.

    Returns:
        As `charts_of_run`.
    """
    names = sorted({name for run in runs.values() for name in run.metrics})
    monitored = {run.chosen.metric for run in runs.values() if run.chosen is not None}
    steps = max(steps_of(run.metrics) for run in runs.values())
    main: list[tuple[int, Chart]] = []
    rest: list[Chart] = []
    for name in names:
        if name.endswith(tuple(CONSTANTS)) or name.startswith(GRADIENT_FLOW):
            continue
        curves = [
            Curve(label, run.metrics[name], style, best=_best(name, run.metrics, run.chosen))
            for style, (label, run) in enumerate(runs.items())
            if name in run.metrics
        ]
        chart = draw_chart(name, [*curves, *_shared_floors(name, runs)], steps)
        if name in monitored or not name.startswith("train/") or quantity_of(name).startswith("loss"):
            main.append((0 if name in monitored else 2 if name.startswith("train/") else 1, chart))
        else:
            rest.append(chart)
    return [chart for _, chart in sorted(main, key=lambda pair: pair[0])][:MOST_CHARTS], rest[:MOST_CHARTS]


def _shared_floors(name: str, runs: Mapping[str, Run]) -> list[Curve]:
    """The floor and the optimum of a metric, if they are the same in all runs that have them."""
    found = []
    for ending, word in CONSTANTS.items():
        values = [run.metrics[name + ending][-1] for run in runs.values() if name + ending in run.metrics]
        if values and max(value for _, value in values) - min(value for _, value in values) <= 1e-6 * abs(values[0][1]):
            found.append(Curve(word, [values[0]], floor=True))
    return found
