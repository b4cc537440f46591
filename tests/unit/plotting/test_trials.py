"""The picture of a search."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.plotting import trials as plotting
from zoo.plotting.trials import PlottedTrial, plot_trials

TRIALS = [
    PlottedTrial(0, 3.0, True, {"lr": 0.1, "loss": "hinge"}),
    PlottedTrial(1, 5.0, False, {"lr": 0.01, "loss": "minimax"}),
    PlottedTrial(2, None, False, {"lr": 1.0, "loss": "hinge"}),
    PlottedTrial(4, 1.0, True, {"lr": 0.03, "loss": "minimax"}),
    PlottedTrial(5, 2.0, True, {"lr": 0.02, "loss": "hinge"}),
]


@pytest.fixture
def figure(monkeypatch):
    """The figures that are drawn."""
    found = []

    def keep(figure):
        found.append(figure)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(plotting, "render_figure", keep)
    return found


@pytest.mark.parametrize(("mode", "best"), [("min", [3, 1, 1, 1]), ("max", [3, 3, 3, 3])])
def test_values_the_best_so_far_and_each_option_are_shown(mode, best, figure):
    plot_trials(TRIALS, "val/loss", mode, ["lr"], {"loss": ["minimax", "hinge"]})
    over_trials, over_lr, over_loss = figure[0].axes
    completed, pruned = (collection.get_offsets().tolist() for collection in over_trials.collections)
    assert (completed, pruned) == ([[0, 3], [4, 1], [5, 2]], [[1, 5]])
    failed, line = over_trials.lines
    assert line.get_xydata().tolist() == [[0, best[0]], [4, best[1]], [5, best[2]], [5, best[3]]]
    assert failed.get_xdata() == [2]
    assert [x for x, _ in over_lr.collections[0].get_offsets()] == [0.1, 0.03, 0.02]
    assert over_lr.get_xscale() == "log" and over_loss.get_xscale() == "linear"
    assert [x for x, _ in over_loss.collections[0].get_offsets()] == [1, 0, 1]
    assert [tick.get_text() for tick in over_loss.get_xticklabels()] == ["minimax", "hinge"]


def test_a_study_without_any_value_is_drawn_too():
    assert plot_trials(TRIALS[2:3], "val/loss", "min").ndim == 3
