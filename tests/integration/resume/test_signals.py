"""Runs that are stopped by a signal: they save a checkpoint after the batch, and are resumed exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.command import CHECKOUT
from tests.helpers.kill_and_resume import differences
from tests.helpers.short_runs import arguments, folder_of, interrupted, mlp_arguments
from zoo.cli.main import main
from zoo.distributed.signals import Stopped

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        main(arguments("MLPClassifier", "undisturbed", gradient_flow=False))
    return folder / folder_of("undisturbed")


@pytest.mark.parametrize(
    ("step", "where"),
    [
        pytest.param(23, "between two validations", marks=pytest.mark.slow),
        (21, "in a batch that validation follows"),
        pytest.param(34, "in the last batch of an epoch", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_by_a_signal_saves_and_is_resumed_exactly(step, where, undisturbed):
    with pytest.raises(Stopped) as stopped:
        main(arguments("MLPClassifier", "stopped", *interrupted(step), gradient_flow=False))
    assert stopped.value.code == 128 + signal.SIGTERM
    last = folder_of("stopped") / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step + 1, "the batch is finished"
    main(arguments("MLPClassifier", "stopped", "--ckpt_path=last", gradient_flow=False))
    assert differences(undisturbed, folder_of("stopped")) == [], where
    assert not folder_of("stopped", 1).exists()


def test_ctrl_c_has_the_exit_code_of_the_shell_and_handlers_are_restored(caplog):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with caplog.at_level("INFO"), pytest.raises(Stopped) as stopped:
        main(mlp_arguments(*interrupted(10, signal.SIGINT)))
    assert stopped.value.code == 130
    last = folder_of("run") / "checkpoints" / "last.ckpt"
    expected = f"Stopped by SIGINT after 11 steps; resume from {last} by the same command with --ckpt_path last"
    assert expected in caplog.text
    assert before == {number: signal.getsignal(number) for number in before}


def test_slurm_is_asked_to_requeue_the_job(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked.txt\n')
    program.chmod(0o755)
    slurm = {"JOB_ID": "4711", "NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_NAME": "train", "PROCID": "0",
             "LOCALID": "0", "NODEID": "0", "NNODES": "1", "NODELIST": "localhost"}  # fmt: skip
    for name, value in {**{f"SLURM_{k}": v for k, v in slurm.items()}, "PATH": f"{program.parent}:/bin"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped) as stopped:
        main(mlp_arguments(*interrupted(5, signal.SIGUSR1)))
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert (tmp_path / "asked.txt").read_text() == "requeue 4711\n"
    assert torch.load(folder_of("run") / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_two_processes_stop_together_save_and_end_with_the_code_of_the_signal(tmp_path):
    options = ["--trainer.max_steps=100000", "--trainer.devices=2", "--trainer.strategy=ddp"]
    log = (tmp_path / "log.txt").open("w")
    command = [sys.executable, str(CHECKOUT / "cli.py"), *arguments("TransformerLM", "run", *options)]
    program = subprocess.Popen(command, stdout=log, stderr=log)
    last = folder_of("run") / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    program.terminate()  # rank 0 alone
    assert program.wait(timeout=60) == 143
    output = (tmp_path / "log.txt").read_text()
    steps = torch.load(last, weights_only=True)["global_step"]
    assert f"Stopped by SIGTERM after {steps} steps" in output
    assert "Traceback" not in output
