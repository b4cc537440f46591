"""Kills runs at random moments, resumes them, and compares their ends with those of undisturbed runs.

For each model of the registry: one undisturbed run, then runs that are ended by SIGKILL at a random moment and resumed
by `--ckpt_path last`. At the end parameters, optimizer states, averages, schedules, random states, early stopping,
metrics, images and rows of Weights & Biases must be the same to the bit. Run it as

    python -m tests.helpers.kill_and_resume --kills 20
    python -m tests.helpers.kill_and_resume --models GAN Diffusion --kills 5 --processes 2
    python -m tests.helpers.kill_and_resume --models GAN --kills 10 --wandb

The ranks of a run are forks of this program, which has imported everything, with the environment of torchrun.
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
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.helpers.models import MODELS, tiny_arguments
from tests.helpers.ranks import run_ranks
from tests.helpers.short_runs import recipe
from tests.helpers.wandb_reader import read_offline_run
from zoo.cli.main import main
from zoo.tracking.wandb_file import ROW

STEPS = 50


class Runs:
    """Runs of one model in one folder.

    Args:
        model: name of the model in the registry.
        folder: folder of all its runs.
        processes: number of ranks of each run.
    """

    def __init__(self, model: str, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        (folder / "run.yaml").write_text(yaml.safe_dump(recipe(model, STEPS)))
        self.arguments = ["fit", "--config", str(folder / "run.yaml"), *tiny_arguments(model, folder)]
        self.arguments += [f"--trainer.devices={processes}", f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}"]

    def start(self, name: str, *options: str) -> int:
        """Starts a run in a process group of its own; returns its leader, which waits for the ranks."""
        if (leader := os.fork()) == 0:
            code = 70
            try:
                os.setsid()
                os.chdir(self.folder)
                logs = [self.folder / f"{name}.log"] * self.processes
                code = run_ranks(
                    lambda _: main([*self.arguments, f"--run.name={name}", *options]), self.processes, logs
                )
            finally:
                os._exit(code)
        return leader

    def finish(self, name: str, *options: str) -> float:
        """Runs to the end; returns the duration in seconds."""
        start = time.monotonic()
        _, status = os.waitpid(self.start(name, *options), 0)
        if status:
            raise RuntimeError(f"a run ended with {status}:\n{(self.folder / f'{name}.log').read_text()[-3000:]}")
        return time.monotonic() - start

    def kill(self, name: str, seconds: float) -> None:
        """Starts a run and kills all its processes after `seconds`."""
        leader = self.start(name)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(leader, os.WNOHANG)[0]:
                return  # it was faster than the undisturbed one
            time.sleep(0.01)
        os.killpg(leader, signal.SIGKILL)
        os.waitpid(leader, 0)

    def newest(self, name: str) -> Path:
        """Folder of the newest run of a name."""
        return max((self.folder / "runs" / name).iterdir(), key=lambda path: path.stat().st_mtime)


def differences(expected: Path, found: Path) -> list[str]:
    """Names of what differs at the end of two runs: entries of the checkpoint, metrics.csv, files."""
    first, second = (dict(_flat(_checkpoint(folder), "")) for folder in (expected, found))
    different = [name for name in sorted(first.keys() | second.keys()) if not _same(first.get(name), second.get(name))]
    rows = [_rows(folder / "metrics.csv") for folder in (expected, found)]
    if rows[0] != rows[1]:
        different.append(f"metrics.csv ({len(rows[0])} and {len(rows[1])} rows)")
    rows = [_wandb_rows(folder) for folder in (expected, found)]
    if rows[0] != rows[1]:
        different.append(f"rows of Weights & Biases ({len(rows[0])} and {len(rows[1])})")
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
    """Rows of metrics.csv without speeds, which differ from run to run."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)]


def _wandb_rows(folder: Path) -> list[tuple[int, list[str]]]:
    """Numbers of the rows of all starts of a run, in their order, and names of what each holds."""
    rows = [row for path in sorted(folder.glob("wandb/*run-*-*/*.wandb")) for row in read_offline_run(path)[1]]
    return [(row[ROW], sorted(name for name in row if not name.startswith("_"))) for row in rows]


def trial(runs: Runs, number: int, seconds: float) -> list[str]:
    """Kills a run after `seconds`, resumes it, and returns its differences from the undisturbed run."""
    runs.kill(f"killed_{number}", seconds)
    runs.finish(f"killed_{number}", "--ckpt_path=last")
    return differences(runs.newest("undisturbed"), runs.newest(f"killed_{number}"))


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="number of ranks of a run")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    parser.add_argument("--wandb", action="store_true", help="with offline runs of Weights & Biases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ |= {"WANDB_MODE": "offline" if arguments.wandb else "disabled", "OMP_NUM_THREADS": "1"}
    moments = random.Random(arguments.seed)
    failed = 0
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            runs = Runs(model, Path(folder), arguments.processes)
            started = time.time()
            duration = runs.finish("undisturbed")
            # Before config.yaml is written, a run has done nothing.
            begun = (runs.newest("undisturbed") / "config.yaml").stat().st_mtime - started
            identical, resumed = 0, 0
            for number in range(arguments.kills):
                seconds = moments.uniform(begun, duration)
                different = trial(runs, number, seconds)
                resumed += "Resuming" in (Path(folder) / f"killed_{number}.log").read_text()
                identical += not different
                if different:
                    failed += 1
                    print(f"{model}: killed after {seconds:.2f} s; differs in {different[:8]}", flush=True)
        print(
            f"{model}: {identical} of {arguments.kills} identical, {resumed} resumed from a checkpoint; "
            f"{arguments.processes} process{'es' if arguments.processes > 1 else ''}",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run())
