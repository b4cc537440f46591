"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets: $ZOO_TEST_DATA, else `../shared/data`; skips the test where there is none."""
    named = os.environ.get("ZOO_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real datasets in {folder}; name their folder in ZOO_TEST_DATA")
    return folder
