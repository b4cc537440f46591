"""The progress bar, and the summary of a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from zoo.callbacks import progress
from zoo.callbacks.progress import ShortModelSummary, ShortProgressBar


@pytest.mark.parametrize("flops", [0, 2_000])
def test_the_summary_has_modules_with_parameters_and_flops_only_where_they_were_counted(flops, capsys):
    columns = {
        " ": ["0", "1"], "Name": ["network", "val_acc"], "Type": ["MLP", "Accuracy"], "Params": ["1.2 K", "0"],
        "Mode": ["train"] * 2, "FLOPs": ["2.0 K", "0"],
    }  # fmt: skip
    rows = list(columns.items())
    ShortModelSummary.summarize(rows, 1200, 1000, 0.01, {"train": 1, "eval": 0}, total_flops=flops)
    output = capsys.readouterr().out
    assert "network" in output and "val_acc" not in output
    assert "1.2 K parameters, 1.0 K of them trained" in output
    assert ("FLOPs" in output) == ("2.0 K" in output) == (flops > 0)


@pytest.mark.parametrize(("rate", "expected"), [(10, [0, 3, 5, 7]), (1000, [0, 1, 2, 3, 4, 5, 6, 7]), (0, [0, 7])])
def test_the_bar_is_updated_at_its_rate_and_after_the_last_batch(monkeypatch, rate, expected):
    updated: list[int] = []
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda *a: updated.append(a[-1]))
    bar, trainer = ShortProgressBar(refresh_rate=rate), SimpleNamespace(is_last_batch=False)
    for index, clock.now in enumerate((0.0, 0.03, 0.06, 0.11, 0.2, 0.22, 0.23, 0.24)):
        trainer.is_last_batch = index == 7
        stand_in: Any = trainer
        bar.on_train_batch_end(stand_in, stand_in, None, None, index)
    assert updated == expected


def test_the_bar_is_drawn_ten_times_a_second():
    bar = ShortProgressBar()
    assert (bar.refresh_rate, bar.is_enabled) == (10, True)
    assert not ShortProgressBar(refresh_rate=0).is_enabled
