"""Reading metrics.csv after a crash, and of others."""

from __future__ import annotations

from zoo.report.metrics import read_metrics


def test_a_row_that_was_cut_off_and_what_is_no_number_are_skipped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,val/loss,train/loss\n0,1.5,\n1,nan,2.5\n,7,7\nx,8,8\n2,abc,2.25\n3,0.", encoding="utf-8")
    assert read_metrics(path) == {"val/loss": [(0, 1.5)], "train/loss": [(1, 2.5), (2, 2.25)]}


def test_without_a_file_or_with_an_empty_one_there_are_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == {}
    (tmp_path / "metrics.csv").touch()
    assert read_metrics(tmp_path / "metrics.csv") == {}
