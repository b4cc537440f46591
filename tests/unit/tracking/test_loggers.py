"""metrics.csv and Weights & Biases of a resumed run: no gaps and no duplicates."""

from __future__ import annotations

import csv
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from tests.helpers.wandb_reader import read_offline_run
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


LINES = ["loss,step", "0.0,0", "1.0,1", "2.0,2", "3.0,3"]


@pytest.mark.filterwarnings("ignore:.*rows that were logged before")
@pytest.mark.parametrize(
    ("content", "kept", "message"),
    [
        ("\n".join([*LINES[:3], "2.0", LINES[4]]), 2, "damaged in line 4; it is kept as metrics-1.csv"),
        ("\n".join([*LINES[:3], "2.0,2,7", LINES[4]]), 2, "damaged in line 4; it is kept as metrics-1.csv"),
        ("\n".join([*LINES[:2], "\udcff\udcfe,1", *LINES[3:]]), 1, "damaged in line 3; it is kept as metrics-1.csv"),
        ("\udcff", 0, "damaged in line 1; it is kept as metrics-1.csv"),
        ("\n".join(LINES[:3]) + "\n", 2, "has 2 of the 4 rows that were logged before the checkpoint"),
        ("", 0, "has 0 of the 4 rows that were logged before the checkpoint"),
        (None, 0, "has 0 of the 4 rows that were logged before the checkpoint"),
    ],
)
def test_a_damaged_file_is_kept_and_its_gap_is_reported(content, kept, message, tmp_path):
    folder = tmp_path / "run" / "version_0"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "metrics.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=message):
        log(tmp_path, 4, range(4, 6))
    assert [row["step"] for row in table(tmp_path)] == [*map(str, range(kept)), "4", "5"]
    assert len(list(folder.glob("metrics-*.csv"))) == ("kept" in message)


@pytest.mark.skipif(
    not hasattr(wandb.Settings(), "x_transaction_log_flush_interval"), reason="this wandb writes rows when it likes"
)
def test_wandb_skips_the_rows_that_are_on_the_disk_and_logs_the_others_again(tmp_path, monkeypatch):
    """The files are copied while the run has them open, as a kill leaves them."""
    live, killed = tmp_path / "live", tmp_path / "killed"
    live.mkdir()
    first = RunWandbLogger(live, offline=True, id="abc")
    for value in range(1, 5):
        first.log_metrics({"x": value})
    first.flush()
    shutil.copytree(live, killed)
    wandb.finish()
    (file,) = killed.glob("wandb/*run-*-abc/*.wandb")
    assert [row["x"] for row in read_offline_run(file)[1]] == [1, 2, 3, 4], "flushed, as before a checkpoint"

    sent: list[float] = []
    experiment = SimpleNamespace(define_metric=lambda *_, **__: None, log=lambda row: sent.append(row["x"]))
    monkeypatch.setattr(RunWandbLogger, "experiment", experiment)
    resumed = RunWandbLogger(killed, rows=2, offline=True, id="abc")
    for value in range(3, 7):
        resumed.log_metrics({"x": value})
    assert (sent, resumed.rows) == ([5, 6], 6)
    with pytest.warns(UserWarning, match="has 4 of the 8 rows that were logged before the checkpoint"):
        RunWandbLogger(killed, rows=8, offline=True, id="abc").log_metrics({"x": 9})
    assert sent[-1] == 9


def test_no_checkpoint_waits_for_rows_that_an_ended_helper_process_will_not_write(tmp_path, monkeypatch):
    monkeypatch.setattr(RunWandbLogger, "experiment", SimpleNamespace(dir=str(tmp_path / "files"), log=lambda _: None))
    monkeypatch.setattr("zoo.tracking.loggers.wandb_core", lambda: SimpleNamespace(poll=lambda: -9))
    (tmp_path / "run.wandb").write_bytes(b":W&B\0\0\0")
    logger = RunWandbLogger(tmp_path, offline=True)
    logger._written, logger.rows, logger._flushes = 0, 3, True
    start = time.monotonic()
    logger.flush()
    assert time.monotonic() - start < 1
