"""CurvePlotter: what it reads from metrics.csv, and when it draws."""

import csv
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from tests.unit.callbacks.test_samples import BrightnessModel, fit
from zoo.callbacks import CurvePlotter
from zoo.report.metrics import read_metrics


class LossLogger(BrightnessModel):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        self.log("train/nan", math.nan)
        return loss


def test_finite_metrics_are_read_and_plotted(tmp_path):
    fit(LossLogger(), CurvePlotter(), tmp_path, log_every_n_steps=2)
    assert Image.open(tmp_path / "curves.png").size[0] > 100
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert [step for step, _ in metrics["train/loss"]] == [1, 3, 5, 7, 9]
    assert "train/nan" not in metrics
    with (tmp_path / "metrics.csv").open() as file:
        assert "train/nan" in next(csv.reader(file))


def test_long_curves_are_thinned_evenly(tmp_path):
    rows = [f"{step},{step / 2},{'7' if step % 1000 == 999 else ''}" for step in range(20_000)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", *rows]))
    metrics = read_metrics(tmp_path / "metrics.csv")
    steps = [step for step, _ in metrics["train/loss"]]
    assert 500 < len(steps) <= 1001
    assert steps[0] == 0 and steps[-1] == 19_999, "the first and the last point are kept"
    assert len({b - a for a, b in pairwise(steps[:-1])}) == 1, "evenly spaced"
    assert all(value == step / 2 for step, value in metrics["train/loss"])
    assert [step for step, _ in metrics["val/loss"]] == list(range(999, 20_000, 1000)), "few points are all kept"


@pytest.mark.parametrize(("every_seconds", "plots"), [(0, 6), (1e6, 2)])
def test_curves_are_drawn_at_validations_at_most_every_n_seconds(every_seconds, plots, tmp_path, monkeypatch):
    drawn = []

    def draw(metrics):
        drawn.append(metrics)
        return np.zeros((2, 2, 3), dtype=np.uint8)

    monkeypatch.setattr("zoo.callbacks.curves.plot_curves", draw)
    options = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    fit(LossLogger(), CurvePlotter(every_seconds), tmp_path, **options)
    assert len(drawn) == plots, "after the first validation, after later ones if due, and at the end"


@pytest.mark.parametrize(("cost", "wait"), [(0.125, 20.0), (2.0, 60.0)])
def test_figures_take_a_thirtieth_of_the_time_at_most(cost, wait, monkeypatch):
    now, drawn = 100.0, []

    def draw():
        nonlocal now
        drawn.append(now)
        now += cost

    logger = CSVLogger("unused")
    monkeypatch.setattr("zoo.callbacks.curves.time.monotonic", lambda: now)
    monkeypatch.setattr(logger, "save", draw)
    monkeypatch.setattr("zoo.callbacks.curves.read_metrics", lambda path: {})
    trainer = SimpleNamespace(
        loggers=[logger], is_global_zero=True, sanity_checking=False, state=SimpleNamespace(fn="fit")
    )
    plotter = CurvePlotter()
    for _ in range(150):
        plotter.on_validation_end(trainer, None)
        now += 1.0
    assert drawn[0] == 100.0
    assert all(wait + cost <= later - earlier < wait + cost + 1.0 for earlier, later in pairwise(drawn))
