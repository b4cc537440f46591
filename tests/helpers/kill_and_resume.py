"""Kills runs at random moments, goes on with them, and compares their ends with those of runs that nobody disturbed.

For each model of the catalog: one undisturbed run, then runs that are ended by SIGKILL at a random moment and taken up
again by `--ckpt_path last`. Parameters, optimizer states, averages, schedules, random states, early stopping, metrics
and pictures must be the same to the bit at the end. Run it as

    python -m tests.helpers.kill_and_resume --kills 20
    python -m tests.helpers.kill_and_resume --models GAN Diffusion --kills 5 --processes 2

The processes of a run are forks of this program, which has imported everything; several of them know of each other as
torchrun's do.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import math
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from tests.helpers.models import MODELS, tiny_arguments
from zoo.cli.main import main

MONITORS = {"GAN": "val/fd", "Diffusion": "val/fd", "ConsistencyModel": "val/fd"}
STEPS = 100


def recipe(model: str) -> dict[str, Any]:
    """Validations, pictures and logs at steps of their own, across the end of an epoch, in a minute's time at most."""
    monitor = {"monitor": MONITORS.get(model, "val/loss"), "mode": "min"}
    callbacks = [
        {"class_path": "BestAndLastCheckpoint", "init_args": monitor},
        {"class_path": "EarlyStopping", "init_args": {**monitor, "patience": 50}},
        {"class_path": "GradientFlow", "init_args": {"every_n_steps": 10}},
    ]
    if model in (*MONITORS, "TransformerLM"):
        callbacks.append({"class_path": "SampleLogger", "init_args": {"n": 4, "every_n_steps": 11}})
    if model == "Seq2Seq":
        callbacks.append({"class_path": "AttentionMaps", "init_args": {"every_n_steps": 25}})
    trainer = {
        "accelerator": "cpu", "max_steps": STEPS, "val_check_interval": 7, "check_val_every_n_epoch": None,
        "log_every_n_steps": 5, "num_sanity_val_steps": 0, "callbacks": callbacks,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return {"trainer": trainer}


class Runs:
    """Runs of one model in one folder.

    Args:
        model: its name.
        folder: of all its runs.
        processes: of each run.
    """

    def __init__(self, model: str, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        (folder / "run.yaml").write_text(yaml.safe_dump(recipe(model)))
        self.arguments = ["fit", "--config", str(folder / "run.yaml"), *tiny_arguments(model, folder)]
        self.arguments += [f"--trainer.devices={processes}", f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}"]

    def start(self, name: str, *options: str) -> int:
        """Starts a run, in a process group of its own; returns its first process."""
        log = os.open(self.folder / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        if (process := os.fork()) == 0:
            code = 70
            try:
                os.setsid()
                os.chdir(self.folder)
                os.dup2(log, 1)
                os.dup2(log, 2)
                others = self._join() if self.processes > 1 else []
                main([*self.arguments, f"--run.name={name}", *options])
                code = max((abs(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])) for other in others), default=0)
            finally:
                os._exit(code)
        os.close(log)
        return process

    def _join(self) -> list[int]:
        """Makes this process the first of several, with the variables that torchrun sets; returns the others."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        size = str(self.processes)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "RANK": "0"}
        os.environ |= {"TORCHELASTIC_RUN_ID": "kill", "LOCAL_WORLD_SIZE": size, "WORLD_SIZE": size, "LOCAL_RANK": "0"}
        others: list[int] = []
        for rank in range(1, self.processes):
            if (process := os.fork()) == 0:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                rank_zero_only.rank = rank  # it was found out at the import, when there was but one process
                return []
            others.append(process)
        return others

    def finish(self, name: str, *options: str) -> float:
        """Lets a run come to its end; returns its seconds."""
        start = time.monotonic()
        process = self.start(name, *options)
        _, status = os.waitpid(process, 0)
        if status:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)  # what waits for the process that has failed
            raise RuntimeError(f"a run ended with {status}:\n{(self.folder / f'{name}.log').read_text()[-3000:]}")
        return time.monotonic() - start

    def kill(self, name: str, seconds: float) -> None:
        """Starts a run and kills all its processes after so many seconds."""
        process = self.start(name)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(process, os.WNOHANG)[0]:
                return  # it was faster than the one before
            time.sleep(0.01)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)

    def end_of(self, name: str) -> Path:
        """The folder of the newest run of this name."""
        return max((self.folder / "runs" / name).iterdir(), key=lambda path: path.stat().st_mtime)


def differences(expected: Path, found: Path) -> list[str]:
    """What is not the same at the end of two runs, by name."""
    first, second = (dict(_flat(_checkpoint(folder), "")) for folder in (expected, found))
    different = [name for name in sorted(first.keys() | second.keys()) if not _same(first.get(name), second.get(name))]
    rows = [_rows(folder / "metrics.csv") for folder in (expected, found)]
    if rows[0] != rows[1]:
        different.append(f"metrics.csv, of {len(rows[0])} and {len(rows[1])} rows")
    for pattern in ("samples/*", "attention/*", "gradient_flow*.csv"):
        names = {path.relative_to(folder) for folder in (expected, found) for path in folder.glob(pattern)}
        pairs = [(expected / name, found / name) for name in sorted(names)]
        different += [
            str(b) for a, b in pairs if not (a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False))
        ]
    return different


def _checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}/{_without_folder(key)}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _flat(part, f"{name}/{index}")
    else:
        yield name, value


def _same(first: Any, second: Any) -> bool:
    if torch.is_tensor(first):
        return torch.is_tensor(second) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    return _without_folder(first) == _without_folder(second)


def _without_folder(value: Any) -> Any:
    return re.sub(r"runs/\w+/version_\d+", "runs", value) if isinstance(value, str) else value


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without speeds, which no two runs have alike."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)]


def trial(runs: Runs, number: int, seconds: float) -> list[str]:
    """One run that is killed after so many seconds, taken up again, and compared with the undisturbed one."""
    runs.kill(f"killed_{number}", seconds)
    runs.finish(f"killed_{number}", "--ckpt_path=last")
    return differences(runs.end_of("undisturbed"), runs.end_of(f"killed_{number}"))


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    moments = random.Random(arguments.seed)
    failed = 0
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            runs = Runs(model, Path(folder), arguments.processes)
            started = time.time()
            duration = runs.finish("undisturbed")
            # Before its configuration is written, a run has done nothing.
            begun = (runs.end_of("undisturbed") / "config.yaml").stat().st_mtime - started
            identical, resumed = 0, 0
            for number in range(arguments.kills):
                seconds = moments.uniform(begun, duration)
                different = trial(runs, number, seconds)
                resumed += "Going on with" in (Path(folder) / f"killed_{number}.log").read_text()
                identical += not different
                if different:
                    failed += 1
                    print(f"{model}: killed after {seconds:.2f} s: not the same: {different[:8]}", flush=True)
        print(
            f"{model}: {identical} of {arguments.kills} identical, {resumed} of them from a checkpoint; "
            f"{arguments.processes} process{'es' if arguments.processes > 1 else ''}",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run())
