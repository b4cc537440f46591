"""What is particular to some models on two processes, and how a run of several processes is seen, and ends."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.command import CHECKOUT, TINY, run_program

SCRIPT = """
import hashlib, json, sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import GAN
from zoo.datamodules import Digits
warnings.filterwarnings("ignore")
options = json.loads(sys.argv[1])
seed_everything(0)
model = GAN(input_shape=(1, 8, 8), num_classes=10, width=32, latent_dim=8, **options)
trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=2, limit_train_batches=6, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=Digits(batch_size=32))
state = b"".join(v.numpy().tobytes() for k, v in sorted(model.state_dict().items()) if torch.is_tensor(v))
result = {"hash": hashlib.sha256(state).hexdigest(), "steps": trainer.global_step, "images": model.ema.images}
result |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
open(f"rank_{trainer.global_rank}.json", "w").write(json.dumps(result))
torch.distributed.destroy_process_group()
"""


def results_of_both_ranks(script: str, argument: str, folder: Path) -> list[dict]:
    """Runs a script, which starts its second process by itself, and reads what each rank left."""
    (folder / "train.py").write_text(script)
    command = [sys.executable, "train.py", argument]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": "gradient_penalty", "loss": "wasserstein", "n_critic": 2},
        {"accumulate": 2, "gradient_clip_val": 1.0, "conditional": True},
    ],
    ids=["wasserstein with its penalty", "accumulating, clipped, conditional"],
)
def test_both_ranks_end_with_the_same_parameters(options, tmp_path):
    first, second = results_of_both_ranks(SCRIPT, json.dumps(options), tmp_path)
    assert first["hash"] == second["hash"]
    assert first["val/fd"] == second["val/fd"]
    assert first["val/fd_floor"] == second["val/fd_floor"]
    assert first["steps"] == 12 // options.get("accumulate", 1)
    assert first["images"] == 12 * 32 * 2, "images of both ranks"


DIFFUSION = """
import hashlib, json, sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import Diffusion
from zoo.datamodules import Digits
warnings.filterwarnings("ignore")
seed_everything(0)
seen = []

class Watched(Diffusion):
    def weighted_loss(self, network, x, noisy, sigma, labels):
        seen.append((noisy - x).div(sigma.view(-1, 1, 1, 1)).flatten()[:4].tolist() + sigma[:2].tolist())
        return super().weighted_loss(network, x, noisy, sigma, labels)

model = Watched(input_shape=(1, 8, 8), num_classes=10, conditional=True, widths=(16,), blocks=1)
trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=2, limit_train_batches=6, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=Digits(batch_size=32))
state = b"".join(v.numpy().tobytes() for k, v in sorted(model.state_dict().items()) if torch.is_tensor(v))
result = {"hash": hashlib.sha256(state).hexdigest(), "noise": seen, "images": model.ema.images}
result |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
open(f"rank_{trainer.global_rank}.json", "w").write(json.dumps(result))
torch.distributed.destroy_process_group()
"""


def test_both_ranks_of_a_diffusion_model_agree_and_draw_noise_of_their_own(tmp_path):
    first, second = results_of_both_ranks(DIFFUSION, "", tmp_path)
    assert first["hash"] == second["hash"]
    assert first["images"] == 12 * 32 * 2, "images of both ranks"
    measured = {name for name in first if name.startswith("val/")}
    assert {"val/loss", "val/excess", "val/fd", "val/nn_ratio", "val/distance_to_ideal"} <= measured
    for name in measured:
        assert first[name] == second[name], name
    for one, other in zip(first["noise"], second["noise"], strict=True):
        assert set(one).isdisjoint(other), "the same noise on both ranks"


def test_two_processes_make_one_run_with_the_floor_of_one_process(tmp_path):
    floors = []
    for devices in (1, 2):
        args = ["fit", "--config", "gan.yaml", "--config", "ddp.yaml", *TINY, f"--trainer.devices={devices}"]
        done = run_program(*args, f"--run.name=on_{devices}", cwd=tmp_path, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr[-3000:]
        folder = tmp_path / "runs" / f"on_{devices}"
        assert [p.name for p in folder.iterdir()] == ["version_0"], "only rank zero makes a folder"
        assert len(list((folder / "version_0" / "wandb").glob("offline-run-*"))) == 1, "one W&B run"
        assert len(list((folder / "version_0" / "samples").glob("step_*.png"))) == 2
        rows = list(csv.DictReader((folder / "version_0" / "metrics.csv").open()))
        floors += [float(row["val/fd_floor"]) for row in rows if row["val/fd_floor"]][:1]
        assert yaml.safe_load((folder / "version_0" / "config.yaml").read_text())["trainer"]["strategy"] == "ddp"
    assert floors[0] == pytest.approx(floors[1], rel=1e-4)


FAULTS = """
import os, signal, time
from pathlib import Path
from lightning.pytorch import Callback

class Fault(Callback):
    '''A process that fails before the fourth batch; one that is stuck at the same time knows nothing of it.'''
    def __init__(self, kind: str, rank: int = 1, stuck: int = -1):
        self.kind, self.rank, self.stuck = kind, rank, stuck

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 3 and trainer.global_rank == self.stuck:
            time.sleep(1000)
        if batch_idx == 3 and trainer.global_rank == self.rank:
            Path("when").write_text(str(time.time()))
            if self.kind == "raise":
                raise RuntimeError("the error that mattered")
            os.kill(os.getpid(), signal.SIGKILL)
"""


def run_with_a_fault(folder: Path, processes: int = 2, **fault: str | int) -> tuple[int, str, float]:
    """Exit code, what was said, and seconds from the fault to the end of all."""
    (folder / "faults.py").write_text(FAULTS)
    args = ["--config=ddp.yaml", "--model=MLPClassifier", "--model.width=16", "--data=Digits", "--data.batch_size=32"]
    args += [f"--trainer.devices={processes}", "--trainer.accelerator=cpu", "--trainer.max_epochs=5"]
    args += ["--trainer.callbacks=faults.Fault", *(f"--trainer.callbacks.{key}={fault[key]}" for key in fault)]
    # The others of the program's processes hold its output open until they have ended.
    done = run_program("fit", *args, cwd=folder, WANDB_MODE="disabled", PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    return done.returncode, done.stdout + done.stderr, time.time() - float((folder / "when").read_text())


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_error_in_one_process_ends_all_and_is_the_only_one_that_is_shown(rank, tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, kind="raise", rank=rank)
    assert code == 1
    assert said.count("RuntimeError: the error that mattered") == 1
    assert said.count("Traceback") == 1
    assert "Connection closed" not in said
    assert seconds < 30


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_all_and_is_named(processes, tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, processes, kind="kill", rank=processes - 1)
    assert code == 1
    assert f"process {processes - 1} (counted from 0) was ended by SIGKILL, and the other processes with it" in said
    assert "Traceback" not in said
    assert seconds < 30


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_for_a_dead_one_is_ended(rank, tmp_path):
    code, said, seconds = run_with_a_fault(tmp_path, kind="kill", rank=rank, stuck=1 - rank)
    assert code in (1, -9)
    assert "Traceback" not in said
    assert seconds < 30


@pytest.mark.slow
def test_a_mistake_that_all_processes_notice_is_told_once(tmp_path):
    args = ["--config=mlp.yaml", "--config=ddp.yaml", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    done = run_program("fit", *args, "--data=Digits", "--data.val_size=5000", cwd=tmp_path, WANDB_MODE="disabled")
    assert done.returncode == 2
    assert done.stderr.count("val_size") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists(), "a run that did not start leaves no folder"


LEAVING = """
import atexit, os
from pathlib import Path
import torch
from lightning.pytorch import Callback

def look():
    threads = [Path(p, "comm").read_text().strip() for p in Path("/proc/self/task").iterdir()]
    Path(f"left_{os.environ.get('LOCAL_RANK', '0')}").write_text(" ".join(t for t in threads if "gloo" in t))

class Look(Callback):
    def on_fit_start(self, trainer, pl_module):
        assert torch.distributed.is_initialized()
        atexit.register(look)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the names of threads where Linux has them")
@pytest.mark.parametrize("launcher", ["Lightning", "torchrun"])
def test_no_thread_of_the_communication_is_left_when_the_interpreter_ends(launcher, tmp_path):
    """Such a thread may need the interpreter's lock once more, and then the process ends by SIGABRT."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    ranks = range(2 if launcher == "Lightning" else 1)
    args = ["--config=ddp.yaml", "--model=MLPClassifier", "--model.width=16", "--data=Digits", "--trainer.max_epochs=1"]
    args += [f"--trainer.devices={len(ranks)}", "--trainer.accelerator=cpu", "--trainer.callbacks=leaving.Look"]
    program = [sys.executable, str(CHECKOUT / "cli.py")]
    if launcher == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", program[1]]
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [*program, "fit", *args]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"left_{rank}").read_text() for rank in ranks] == [""] * len(ranks)


@pytest.mark.slow
def test_two_processes_train_to_the_quality_of_one(tmp_path: Path):
    """The same steps on the same number of images, each of two processes taking half of every batch."""
    best = []
    for devices in (1, 2):
        args = [
            "--config",
            "gan.yaml",
            "--config",
            "ddp.yaml",
            f"--trainer.devices={devices}",
            "--trainer.max_steps=3000",
        ]
        options = [f"--run.name=on_{devices}", f"--data.batch_size={64 // devices}", "--trainer.accelerator=cpu"]
        done = run_program(
            "fit", *args, *options, cwd=tmp_path, WANDB_MODE="disabled", OMP_NUM_THREADS="1", timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = csv.DictReader((tmp_path / "runs" / f"on_{devices}" / "version_0" / "metrics.csv").open())
        best.append(min(float(row["val/fd"]) for row in rows if row["val/fd"]))
    assert best[1] < 1.5 * best[0]
