"""The command report: what it writes and where, and mistakes in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.command import fails
from tests.unit.report.runs import write_run
from zoo.cli.main import main


@pytest.fixture
def runs(in_an_empty_folder, monkeypatch) -> list[str]:
    """Two runs in the working folder."""
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    return [str(write_run(Path("runs/gan") / f"version_{k}")) for k in range(2)]


def test_the_page_of_a_run_is_in_its_folder_with_a_number_if_there_is_one(runs, capsys):
    for name in ("report.html", "report-1.html"):
        main(["report", runs[0]])
        path = Path(runs[0]) / name
        assert capsys.readouterr().out == f"wrote {path}\n"
        page = path.read_text(encoding="utf-8")
        assert "python cli.py sample --ckpt_path runs/gan/version_0/checkpoints/best.ckpt --n 64" in page


def test_a_page_that_compares_runs_is_in_the_working_folder(runs, capsys):
    main(["report", *runs])
    assert capsys.readouterr().out == "wrote comparison.html\n"
    assert "2 runs side by side" in Path("comparison.html").read_text(encoding="utf-8")


def test_a_run_that_is_named_twice_is_compared_with_nothing(runs):
    main(["report", runs[0], f"{runs[0]}/", "--out", "a.html"])
    assert "Report of gan/version_0" in Path("a.html").read_text(encoding="utf-8")


def test_a_file_is_replaced_if_it_is_asked_for(runs, capsys):
    Path("a.html").write_text("mine")
    assert "a.html exists already" in fails(capsys, "report", runs[0], "--out=a.html")
    assert Path("a.html").read_text() == "mine"
    main(["report", runs[0], "--out", "a.html", "--overwrite"])
    assert "Report of gan/version_0" in Path("a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["runs/gan/version_0", "--ot", "a.html"], "report has no option --ot; did you mean --out?"),
        (["runs/gan/version_0", "--out"], "argument --out: expected one argument"),
        (["runs/gan/version_0", "--out", "a.pdf"], "--out a.pdf must end in .html"),
        (["runs/gan"], "runs/gan holds runs and is none itself; give one or more of them, such as runs/gan/version_"),
        (["runs/gna/version_0"], "there is no folder runs/gna/version_0; give the folder of a run"),
        (["runs/gan/version_0/config.yaml"], "is a file; give the folder of the run"),
        (["."], ". is not the folder of a run: it has neither config.yaml nor metrics.csv"),
    ],
)
def test_a_mistake_gets_one_line_and_nothing_is_written(runs, capsys, words, message):
    before = sorted(Path().rglob("*"))
    assert message in fails(capsys, "report", *words)
    assert sorted(Path().rglob("*")) == before
