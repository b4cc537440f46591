"""A server of Weights & Biases that hangs keeps neither a run nor the end of its process waiting."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import wandb
from packaging.version import Version

from tests.helpers.command import MLP_RUN, read_rows
from tests.helpers.wandb_server import server_that_starts_runs, silent_server
from zoo._lightning import wandb_core
from zoo.cli.main import main
from zoo.tracking import wandb_process

FOLDER = Path("runs/mlpclassifier/version_0")


@pytest.fixture(autouse=True)
def key(in_an_empty_folder, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)


def run(monkeypatch: pytest.MonkeyPatch, url: str, *options: str) -> str:
    """Trains with this server, within a time; returns the only warning about Weights & Biases."""
    monkeypatch.setenv("WANDB_BASE_URL", url)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="Weights & Biases") as said:
        main([*MLP_RUN, *options])
    assert time.monotonic() - start < 60, "without limits it is 67 seconds, or 20 minutes"
    (message,) = (str(one.message) for one in said if "Weights & Biases" in str(one.message))
    return message


def test_a_server_that_never_answers_delays_the_start_by_its_limit_and_the_run_is_offline(monkeypatch):
    monkeypatch.setattr(wandb_process, "START_LIMIT", 1.0)
    with silent_server() as url:
        message = run(monkeypatch, url)
    assert "not available (no answer within 1 s), so the run is kept on disk; to upload it later:" in message
    assert list(FOLDER.glob("wandb/offline-run-*/*.wandb"))
    assert read_rows(FOLDER)


@pytest.mark.skipif(
    Version(wandb.__version__) < Version("0.31"), reason="the stand-in for the server starts runs of wandb 0.31"
)
def test_a_server_that_hangs_after_the_start_delays_the_end_by_its_limit_and_the_helper_is_ended(monkeypatch):
    helpers = []
    monkeypatch.setattr("zoo.cli.fit.print_summary", lambda *_: helpers.append(wandb_core()))
    with server_that_starts_runs() as url:
        message = run(monkeypatch, url, "--wandb.finish_limit=0.5")
    (folder,) = FOLDER.glob("wandb/run-*")
    assert "has not got everything (no answer within 0.5 s); to upload it: " in message
    assert message.endswith(f"wandb sync {folder}")
    (helper,) = helpers
    assert helper is not None and helper.poll() is not None
    assert wandb_core() is None
    assert read_rows(FOLDER) and list(folder.glob("*.wandb"))


def test_training_outlives_the_helper_process(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    begin = "zoo.callbacks.best_and_last.BestAndLastCheckpoint.on_validation_end"
    monkeypatch.setattr(begin, lambda *_: helper.kill() if (helper := wandb_core()) else None)
    with pytest.warns(UserWarning, match="Weights & Biases has not logged everything: "):
        main(MLP_RUN)
    assert len(read_rows(FOLDER)) > 3
