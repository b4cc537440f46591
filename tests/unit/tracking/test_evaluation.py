"""The Weights & Biases run that a test is logged into."""

from __future__ import annotations

import fcntl
import os

import pytest

from zoo.tracking.evaluation import loggers_of_test
from zoo.tracking.run_folders import RunLock
from zoo.tracking.wandb import WandbOptions, wandb_id
from zoo.tracking.wandb_process import end_helper, finish_run

OFFLINE = WandbOptions(mode="offline", project="digits")


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has been resumed once."""
    folder = tmp_path / "runs" / "mlp" / "version_0"
    for name in ("checkpoints", "wandb/offline-run-20260101_000000-abc", "wandb/offline-run-20260102_000000-abc"):
        (folder / name).mkdir(parents=True)
    yield folder
    finish_run()
    end_helper()
    RunLock.release()


def test_the_run_of_the_checkpoint_is_resumed(run):
    (logger,) = loggers_of_test(str(run / "checkpoints" / "best.ckpt"), OFFLINE)
    assert logger.version == wandb_id(run) == "abc"
    assert logger.name == "digits"
    assert logger.save_dir == str(run)


def test_a_run_that_is_in_progress_is_left_alone(run, caplog):
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process would
    with caplog.at_level("INFO"):
        assert loggers_of_test(str(run / "checkpoints" / "best.ckpt"), OFFLINE) == []
    os.close(handle)
    assert caplog.messages == [f"Weights & Biases is left out: the run in {run} is still in progress"]


def test_without_a_run_it_is_left_out_with_one_line(run, caplog):
    path = str(run.parent / "best.ckpt")
    with caplog.at_level("INFO"):
        assert loggers_of_test(path, OFFLINE) == []
    assert caplog.messages == [f"Weights & Biases is left out: there is no run of it beside {path}"]
    caplog.clear()
    with caplog.at_level("INFO"):
        assert loggers_of_test(str(run / "checkpoints" / "best.ckpt"), WandbOptions(mode="disabled")) == []
        assert loggers_of_test(None, OFFLINE) == []
    assert not caplog.messages


def test_without_a_connection_it_is_offline(run, monkeypatch, caplog):
    monkeypatch.setattr("zoo.tracking.wandb.connection_problem", lambda url: "no connection")
    (logger,) = loggers_of_test(str(run / "checkpoints" / "best.ckpt"), WandbOptions(mode="online"))
    assert logger.version == "abc" and logger.save_dir == str(run)
