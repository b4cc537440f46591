"""Runs that are killed, and resumed from their last checkpoint: they end as if nothing had happened, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from tests.helpers.command import CHECKOUT
from tests.helpers.kill_and_resume import Runs, differences
from tests.helpers.short_runs import arguments, folder_of, interrupted
from tests.helpers.wandb_reader import read_offline_run
from zoo.cli.main import main
from zoo.tracking.wandb_file import ROW

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def test_a_run_that_fails_between_two_checkpoints_is_resumed_exactly(monkeypatch):
    """As after a kill, but in this process. The run of W&B continues as well, and logs nothing twice."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    main(arguments("GAN", "undisturbed", gradient_flow=False))
    wandb.finish()
    with pytest.raises(RuntimeError, match="the process fails here"):  # after the samples of step 22 have been logged
        main(arguments("GAN", "failed", *interrupted(23, 0), gradient_flow=False))
    wandb.finish()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Skipping")  # no checkpoint is
        main(arguments("GAN", "failed", "--ckpt_path=last", gradient_flow=False))
    wandb.finish()
    assert differences(folder_of("undisturbed"), folder_of("failed")) == []
    assert not folder_of("failed", 1).exists()
    files = {name: sorted(folder_of(name).glob("wandb/offline-run-*/*.wandb")) for name in ("undisturbed", "failed")}
    assert len(files["failed"]) == 2
    assert len({path.name for path in files["failed"]}) == 1, "one id"
    rows = {name: [len(read_offline_run(path)[1]) for path in paths] for name, paths in files.items()}
    assert sum(rows["failed"]) == rows["undisturbed"][0]
    numbers = [row[ROW] for path in files["failed"] for row in read_offline_run(path)[1]]
    assert numbers == list(range(1, len(numbers) + 1))


#: One model for each way of training: manual optimization, noise, an average with batch norm, text; on two ranks two of
#: them. That every model resumes exactly is in its contract; the command on the page on reliability kills them all.
KILLED = {1: ["GAN", "Diffusion", "ResNetClassifier", "TransformerLM"], 2: ["GAN", "Diffusion"]}


@pytest.mark.slow
@pytest.mark.parametrize("processes", KILLED)
def test_runs_that_are_killed_end_as_if_nothing_had_happened(processes):
    options = ["--models", *KILLED[processes], "--kills", "1", "--processes", str(processes)]
    command = [sys.executable, "-m", "tests.helpers.kill_and_resume", *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("1 of 1 identical") == len(KILLED[processes]), done.stdout
    # Some of the random moments are before the first checkpoint of a fast model, but not all.
    assert "1 resumed from a checkpoint" in done.stdout, done.stdout


@pytest.mark.parametrize("rank", ["0", "1"])
def test_kill_and_resume_reports_a_rank_that_fails(rank, tmp_path, monkeypatch):
    def fail(arguments):
        if os.environ["RANK"] == rank:
            sys.exit(2)

    monkeypatch.setattr("tests.helpers.kill_and_resume.main", fail)
    with pytest.raises(RuntimeError, match="a run ended with"):
        Runs("MLPClassifier", tmp_path, 2).finish("run")
