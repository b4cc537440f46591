"""Settings and fixtures of the unit tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def seed():
    """Seeds torch's random numbers, so that no test depends on those that ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what `tests.unit.two_ranks` has written, and its `stderr.txt`.

    The workers of pytest-xdist share it: the first one that needs it writes it, and another one waits meanwhile.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_ranks"
    with FileLock(f"{folder}.lock"):
        if not (folder / "stderr.txt").exists():
            folder.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "tests.unit.two_ranks", str(folder)]
            done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
            (folder / "stderr.txt").write_text(done.stderr)
    return folder
