"""What several tests need: running the command line, and reading what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.cli.main import main

CHECKOUT = Path(__file__).parents[2]

TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=3",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Runs a command that must end with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("zoo: error: ")


def run_program(*args: str, cwd: Path, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `python cli.py` as a user does, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | variables
    command = [sys.executable, str(CHECKOUT / "cli.py"), *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
