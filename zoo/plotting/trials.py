"""Trials of a search for options: the metric over the trials, and over each option."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage


class PlottedTrial(NamedTuple):
    """One trial.

    Attributes:
        number: number of the trial.
        value: best value of the metric; None for a trial that failed.
        completed: whether the trial ran to its end; else it was pruned.
        options: value of each option.
    """

    number: int
    value: float | None
    completed: bool
    options: dict[str, Any]


def plot_trials(
    trials: Sequence[PlottedTrial],
    metric: str,
    mode: Literal["min", "max"],
    logarithmic: Collection[str] = (),
    choices: Mapping[str, Sequence[Any]] | None = None,
) -> RGBImage:
    """Plots the metric over the trials, with the best so far, and in a panel for each option over its values.

    Completed trials are dots, pruned ones crosses, failed ones red ticks at the bottom.

    Args:
        trials: trials in their order, at least one.
        metric: name of the metric.
        mode: "min" if lower values are better, "max" if higher values are.
        logarithmic: options with a logarithmic axis.
        choices: choices of those options that have some, which become ticks in their order.
    """
    names = list(trials[0].options)
    figure, axes = new_figure(1 + len(names))
    values = [trial.value for trial in trials if trial.value is not None]
    wide = bool(values) and min(values) > 0 and max(values) / min(values) > 10
    _scatter(axes[0], [trial.number for trial in trials], trials)
    _plot_best(axes[0], trials, min if mode == "min" else max)
    axes[0].set(xlabel="trial", ylabel=metric)
    axes[0].legend(fontsize="small")
    for ax, name in zip(axes[1:], names, strict=True):
        positions, ticks = [trial.options[name] for trial in trials], (choices or {}).get(name)
        _scatter(ax, positions if ticks is None else [list(ticks).index(value) for value in positions], trials)
        if ticks is not None:
            ax.set_xticks(range(len(ticks)), map(str, ticks))
            ax.set_xlim(-0.5, len(ticks) - 0.5)
        elif name in logarithmic:
            ax.set_xscale("log")
        ax.set(xlabel=_short(name), ylabel=metric)
    for ax in axes if wide else ():
        ax.set_yscale("log")
    return render_figure(figure)


def _scatter(ax: Any, positions: Sequence[float], trials: Sequence[PlottedTrial]) -> None:
    points = list(zip(positions, trials, strict=True))
    for completed, style in (
        (True, {"color": "tab:blue", "marker": "o", "label": "completed"}),
        (False, {"color": "0.5", "marker": "x", "label": "pruned"}),
    ):
        shown = [(x, t.value) for x, t in points if t.value is not None and t.completed == completed]
        if shown:
            ax.scatter(*zip(*shown, strict=True), s=25, zorder=3, **style)
    failed = [x for x, trial in points if trial.value is None]
    if failed:
        bottom = ax.get_xaxis_transform()
        ax.plot(failed, [0.02] * len(failed), "|", color="tab:red", ms=9, transform=bottom, label="failed")


def _plot_best(ax: Any, trials: Sequence[PlottedTrial], better: Any) -> None:
    """Best value of the completed trials so far, as steps."""
    completed = [(trial.number, trial.value) for trial in trials if trial.completed and trial.value is not None]
    if completed:
        numbers, values = zip(*completed, strict=True)
        best = list(itertools.accumulate(values, better))
        end = trials[-1].number
        ax.step([*numbers, end], [*best, best[-1]], where="post", color="tab:orange", label=f"best {best[-1]:.4g}")


def _short(name: str, length: int = 36) -> str:
    """The end of a long name."""
    return name if len(name) <= length else f"…{name[-length:]}"
