"""DDP of particular models, runs of several processes as a user sees them, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.command import CHECKOUT, TINY, only_error, read_rows, run_program
from tests.integration.distributed.models_on_two_ranks import GANS
from zoo.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_an_empty_folder")]


# Particular models


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    """What each of two ranks finds after training each model."""
    folder = tmp_path_factory.mktemp("both")
    command = [sys.executable, "-m", "tests.integration.distributed.models_on_two_ranks", str(folder)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", GANS)
def test_both_ranks_of_a_gan_end_with_the_same_parameters(name, both):
    first, second = (found[name] for found in both)
    assert first["hash"] == second["hash"]
    assert first["val/fd"] == second["val/fd"]
    assert first["val/fd_floor"] == second["val/fd_floor"]
    assert first["steps"] == 12 // GANS[name].get("accumulate_grad_batches", 1)
    assert first["images"] == 12 * 32 * 2, "images of both ranks"


def test_both_ranks_of_a_diffusion_model_agree_and_draw_noise_of_their_own(both):
    first, second = (found["diffusion"] for found in both)
    assert first["hash"] == second["hash"]
    assert first["images"] == 12 * 32 * 2, "images of both ranks"
    measured = {name for name in first if name.startswith("val/")}
    assert {"val/loss", "val/excess", "val/fd", "val/near_copies", "val/distance_to_ideal"} <= measured
    for name in measured:
        assert first[name] == second[name], name
    assert len(first["noise"]) == 12
    for one, other in zip(first["noise"], second["noise"], strict=True):
        assert set(one).isdisjoint(other), "the same noise on both ranks"


@pytest.mark.parametrize("name", ["fine-tuning", "fine-tuning, resumed"])
def test_both_ranks_train_a_backbone_alike_that_is_unfrozen_in_mid_run(name, both):
    first, second = (found[name] for found in both)
    assert first["hash"] == second["hash"]
    assert first["hash"] == both[0]["fine-tuning"]["hash"], "resumed at the unfreezing, to the bit"
    sums = first["sums"]
    assert both[0]["fine-tuning"]["sums"][0] != sums[-1], "trained after the first epoch"
    assert first["steps"] == 12


# A run of several processes


LEAVING = """
import atexit, os
from pathlib import Path
import torch
from lightning.pytorch import Callback

def name_of(thread):
    try:
        return Path(thread, "comm").read_text().strip()
    except OSError:  # it has ended since the folder was listed
        return ""

def look():
    tasks = Path("/proc/self/task")  # where Linux has them
    names = [name_of(thread) for thread in tasks.iterdir()] if tasks.is_dir() else []
    Path(f"left_{os.environ.get('LOCAL_RANK', '0')}").write_text(" ".join(name for name in names if "gloo" in name))

class Look(Callback):
    def on_fit_start(self, trainer, pl_module):
        assert torch.distributed.is_initialized()
        atexit.register(look)
"""


def test_two_processes_make_one_run_with_the_floor_of_one_process(tmp_path, cheap_reports):
    """And end as one: see `test_no_thread_of_the_communication_is_left_when_the_interpreter_ends`."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    floors = []
    for devices in (2, 1):
        args = ["fit", "--config", "gan_digits.yaml", "--config", "ddp.yaml", *TINY, f"--trainer.devices={devices}"]
        args += [f"--run.name=on_{devices}", "--wandb.mode=offline"]
        if devices == 1:
            main(args)
        else:
            done = run_program(*args, "--trainer.callbacks+=leaving.Look", cwd=tmp_path, PYTHONPATH=str(tmp_path))
            assert done.returncode == 0, done.stderr[-3000:]
            assert [(tmp_path / f"left_{rank}").read_text() for rank in range(2)] == ["", ""]
        (folder,) = (tmp_path / "runs" / f"on_{devices}").iterdir()
        assert folder.name == "version_0", "only rank 0 makes a folder"
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1, "one W&B run"
        assert len(list(folder.glob("samples/step_*.png"))) == 2
        floors += [float(row["val/fd_floor"]) for row in read_rows(folder) if row["val/fd_floor"]][:1]
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["strategy"] == "ddp"
    assert floors[0] == pytest.approx(floors[1], rel=1e-4)


def test_a_mistake_that_all_ranks_notice_is_reported_once(tmp_path):
    args = ["--config=mlp.yaml", "--config=ddp.yaml", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    done = run_program("fit", *args, "--data=Digits", "--data.val_size=5000", cwd=tmp_path, WANDB_MODE="disabled")
    assert done.returncode == 2
    assert "val_size" in only_error(done.stderr)
    assert done.stderr.count("val_size") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists(), "a run that did not start leaves no folder"


# How it ends


FAULTS = """
import os, signal, time
from pathlib import Path
from lightning.pytorch import Callback

class Fault(Callback):
    '''Makes one rank fail before the fourth batch, and another one hang at the same time.'''
    def __init__(self, kind: str, rank: int = 1, stuck: int = -1, hook: str = ""):
        self.kind, self.rank, self.stuck, self.hook = kind, rank, stuck, hook

    def setup(self, trainer, pl_module, stage):
        if self.hook == "setup":
            self.on_train_batch_start(trainer, pl_module, None, 3)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 3 and trainer.global_rank == self.stuck:
            time.sleep(1000)
        if batch_idx == 3 and trainer.global_rank == self.rank:
            Path("when").write_text(str(time.time()))
            if self.kind == "raise":
                raise RuntimeError("the error that mattered")
            os.kill(os.getpid(), getattr(signal, self.kind))
"""


def run_with_a_fault(folder: Path, *options: str, processes: int = 2, **fault: str | int) -> tuple[int, str, float]:
    """Exit code, output, and seconds from the fault to the end of all processes."""
    (folder / "faults.py").write_text(FAULTS)
    args = ["--config=ddp.yaml", "--model=MLPClassifier", "--model.width=16", "--data=Digits", "--data.batch_size=32"]
    args += [f"--trainer.devices={processes}", "--trainer.accelerator=cpu", "--trainer.max_epochs=5"]
    args += ["--trainer.callbacks=faults.Fault", *(f"--trainer.callbacks.{key}={fault[key]}" for key in fault)]
    args += options
    # All processes of the program hold its output open until they have ended.
    done = run_program("fit", *args, cwd=folder, WANDB_MODE="disabled", PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    return done.returncode, done.stdout + done.stderr, time.time() - float((folder / "when").read_text())


def test_an_error_on_one_rank_ends_all_and_is_the_only_one_that_is_shown(tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, kind="raise", rank=1)
    assert code == 1
    assert said.count("RuntimeError: the error that mattered") == 1
    assert said.count("Traceback") == 1
    assert "Connection closed" not in said
    assert seconds < 30


def test_a_rank_that_is_stopped_is_named_when_the_others_have_waited_for_the_time_of_the_user(tmp_path):
    strategy = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:20"]
    code, said, seconds = run_with_a_fault(tmp_path, *strategy, kind="SIGSTOP", rank=1)
    assert code == 1
    assert only_error(said).startswith("rank 1 does not answer, and the others have waited for the time of")
    assert "Traceback" not in said
    assert 20 < seconds < 80


def test_a_signal_in_the_set_up_of_one_rank_ends_all(tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, kind="SIGTERM", rank=1, hook="setup")
    assert code == 143
    assert "Traceback" not in said
    assert seconds < 30


def test_a_rank_that_is_killed_is_named_and_ends_those_that_wait_for_it_and_those_that_hang(tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, processes=3, kind="SIGKILL", rank=2, stuck=0)
    assert code == 1
    assert "rank 2 was ended by SIGKILL; all other processes were stopped" in said
    assert "Traceback" not in said
    assert seconds < 30


def test_a_rank_that_hangs_is_ended_when_rank_0_is_killed(tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, kind="SIGKILL", rank=0, stuck=1)
    assert code == -9
    assert "Traceback" not in said
    assert seconds < 30


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the names of threads where Linux has them")
def test_no_thread_of_the_communication_is_left_when_the_interpreter_ends(tmp_path):
    """Such a thread may need the interpreter's lock once more, and then the process ends by SIGABRT. By torchrun."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    args = ["--config=ddp.yaml", "--model=MLPClassifier", "--model.width=16", "--data=Digits", "--trainer.max_epochs=1"]
    args += ["--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.callbacks=leaving.Look"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(CHECKOUT / "cli.py"), "fit", *args]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "left_0").read_text() == ""
