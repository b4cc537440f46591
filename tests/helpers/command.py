"""Running the command line, and reading what it left."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.cli.main import main

CHECKOUT = Path(__file__).parents[2]

#: Options of a run of six steps with two validations.
TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=3",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
]
#: The recipe gan_digits.yaml, shortened.
GAN_RUN = ["fit", "--config", "gan_digits.yaml", *TINY, "--data.repeats=1"]
#: The shortest run: a classifier that is trained for six steps, with two checkpoints.
MLP = ["--model=MLPClassifier", "--model.width=8", "--model.depth=1"]
MLP_RUN = [
    "fit", *MLP, "--data=Digits", "--data.batch_size=64", *TINY,
    "--trainer.callbacks=BestAndLastCheckpoint", "--trainer.callbacks.monitor=val/loss",
]  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Runs a command that must end with exit code 2 and one line of error; returns the line."""
    return error_line(capsys, 2, *args)


def error_line(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    """Runs a command that must end with this exit code and one line of error; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == code
    return only_error(capsys.readouterr().err)


def only_error(output: str) -> str:
    """The only line of error in a program's output, without its prefix."""
    (line,) = [line for line in output.splitlines() if line.startswith("zoo: error: ")]
    return line.removeprefix("zoo: error: ")


def run_program(*args: str, cwd: Path, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `python cli.py` in a process of its own, as a user does. Where the process is not the point, call `main`.

    Args:
        *args: command and its options.
        cwd: working folder.
        timeout: seconds after which the process is ended.
        **variables: environment variables; those of Weights & Biases are not inherited.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | variables
    command = [sys.executable, str(CHECKOUT / "cli.py"), *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of the metrics.csv in a run's folder."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: contents of files, targets of links, by relative path."""
    files = {
        p: p.read_bytes() if p.is_file() else str(p.readlink()) if p.is_symlink() else "" for p in folder.rglob("*")
    }
    return {str(path.relative_to(folder)): content for path, content in files.items()}
