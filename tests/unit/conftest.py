"""Settings and fixtures of the unit tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def seed():
    """Seeds torch's random numbers, so that no test depends on those that ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what `tests.unit.two_ranks` has written, and its `stderr.txt`."""
    folder = tmp_path_factory.mktemp("two_ranks")
    command = [sys.executable, "-m", "tests.unit.two_ranks", str(folder)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stderr.txt").write_text(done.stderr)
    return folder
