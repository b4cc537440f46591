"""Which metrics share a chart, and in which order the charts stand."""

from __future__ import annotations

from pathlib import Path

from zoo.report.curves import charts_of_gradient_flow, charts_of_run, charts_of_runs, quantity_of
from zoo.report.run import Chosen, Run

POINTS = [(0, 3.0), (9, 1.0)]


def run_with(*names: str, chosen: str | None = None, **values: float) -> Run:
    """A run with metrics of these names, and constants of these values, such as val_fd_floor."""
    constants = {name.replace("_", "/", 1): [(9, value)] for name, value in values.items()}
    metrics = dict.fromkeys(names, POINTS) | constants
    return Run(Path("run"), "run", metrics=metrics, chosen=Chosen(chosen, "min", 1.0, 9, None) if chosen else None)


def test_training_and_validation_share_a_chart_with_their_floor_and_the_chosen_metric_comes_first():
    names = ("train/loss", "val/loss", "train/lr", "val/acc", "val/fd")
    main, rest = charts_of_run(run_with(*names, chosen="val/fd", val_fd_floor=0.5))
    assert [chart.title for chart in main] == ["val/fd", "loss", "val/acc"]
    assert [line.label for line in main[1].lines] == ["train/loss", "val/loss"]
    assert [line.label for line in main[0].lines] == ["val/fd", "floor 0.5"]
    assert [chart.title for chart in rest] == ["train/lr"]
    assert main[0].lines[0].best is not None and main[1].lines[1].best is None


def test_losses_of_several_networks_are_among_the_first_charts():
    main, rest = charts_of_run(run_with("train/loss_d", "train/loss_g", "train/d_real"))
    assert [chart.title for chart in main] == ["train/loss_d", "train/loss_g"]
    assert [chart.title for chart in rest] == ["train/d_real"]


def test_a_floor_alone_is_no_chart():
    assert charts_of_run(run_with(val_fd_floor=0.5)) == ([], [])


def test_gradient_flow_has_charts_of_its_own_with_a_curve_for_each_network():
    names = [f"gradient_flow/{network}/first_last_ratio" for network in ("generator", "discriminator")]
    run = run_with("train/loss", *names)
    assert [chart.title for chart in charts_of_run(run)[0]] == ["train/loss"]
    (chart,) = charts_of_gradient_flow(run)
    assert chart.title == "first last ratio"
    assert {line.label for line in chart.lines} == {"generator", "discriminator"}


def test_runs_share_a_chart_for_each_metric_and_a_floor_if_it_is_the_same():
    first = run_with("val/fd", "train/loss", chosen="val/fd", val_fd_floor=0.5)
    second = run_with("val/fd", "val/acc", val_fd_floor=0.5)
    main, _ = charts_of_runs({"a": first, "b": second})
    assert [chart.title for chart in main] == ["val/fd", "val/acc", "train/loss"]
    assert [line.label for line in main[0].lines] == ["a", "b", "floor 0.5"]
    assert [line.label for line in main[1].lines] == ["b"]
    assert main[1].lines[0].color == main[0].lines[1].color, "a run has one style in all charts"
    other = run_with("val/fd", val_fd_floor=0.75)
    assert [line.label for line in charts_of_runs({"a": first, "b": other})[0][0].lines] == ["a", "b"]


def test_quantities_are_named_without_split_and_constant():
    assert [quantity_of(name) for name in ("val/fd", "val/fd_floor", "train/value_optimum", "lr")] == [
        "fd", "fd", "value", "lr",
    ]  # fmt: skip
