"""metrics.csv and Weights & Biases of a resumed run: no gaps and no duplicates."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger

from zoo.tracking.loggers import RunCSVLogger, RunWandbLogger


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "version_0" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, rows: int, steps: range, names: tuple[str, ...] = ("loss",)) -> RunCSVLogger:
    logger = RunCSVLogger(str(folder), "run", "version_0", rows)
    for step in steps:
        logger.log_metrics({name: float(step) for name in names}, step=step)
    logger.save()
    return logger


def test_rows_are_counted_and_the_file_is_in_the_runs_own_folder(tmp_path):
    logger = log(tmp_path, 0, range(3))
    assert logger.rows == 3
    assert [row["loss"] for row in table(tmp_path)] == ["0.0", "1.0", "2.0"]


def test_a_resumed_file_keeps_the_rows_of_the_checkpoint_and_drops_later_ones(tmp_path):
    log(tmp_path, 0, range(5))
    with (tmp_path / "run" / "version_0" / "metrics.csv").open("a") as file:
        file.write("0.3,7")  # a row that was cut off when the process was killed
    logger = log(tmp_path, 3, range(3, 6))
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2", "3", "4", "5"]
    assert logger.rows == 6


def test_a_new_column_keeps_the_rows_before_it(tmp_path):
    log(tmp_path, 0, range(2))
    log(tmp_path, 2, range(2, 4), ("loss", "acc"))
    rows = table(tmp_path)
    assert [row["loss"] for row in rows] == ["0.0", "1.0", "2.0", "3.0"]
    assert [row["acc"] for row in rows] == ["", "", "2.0", "3.0"]


@pytest.fixture
def sent(monkeypatch) -> list[float]:
    """What reaches Weights & Biases."""
    values: list[float] = []
    monkeypatch.setattr(WandbLogger, "log_metrics", lambda self, metrics, step=None: values.append(metrics["x"]))
    return values


def test_wandb_skips_rows_that_were_logged_after_the_checkpoint(sent, tmp_path):
    first = RunWandbLogger(tmp_path, offline=True)
    for value in range(5):
        first.log_metrics({"x": value})
    resumed = RunWandbLogger(tmp_path, rows=3, offline=True)
    for value in range(3, 8):
        resumed.log_metrics({"x": value})
    assert sent == [0, 1, 2, 3, 4, 5, 6, 7]
    assert resumed.rows == 8
