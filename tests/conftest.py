"""Fixtures that several tests use."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread per process, before torch is imported: tests run, and start, several processes, and with more threads than
# cores every one of them is many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The garbage collector goes through all objects again and again while thousands of tests are collected, and then
# through the tests while they run: a tenth of the time of a short one.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Turns the garbage collector on again, which leaves out what is there by now and runs less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are written without waiting until they are on the disk, which matters to nobody but after a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets: $ZOO_TEST_DATA, else `../shared/data`; skips the test where there is none."""
    named = os.environ.get("ZOO_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real datasets in {folder}; name their folder in ZOO_TEST_DATA")
    return folder


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs the test in an empty folder, without Weights & Biases; returns the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("WANDB_API_KEY", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what the test sets, as DDP does, is taken back
        monkeypatch.delenv(name)
    yield tmp_path
    if wandb := sys.modules.get("wandb"):
        if wandb.run is not None:  # a later test would log into it
            wandb.finish()
        wandb.teardown()  # a later run would be written into this folder, in which its service works


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Function that returns the path of a checkpoint of `tests.helpers.checkpoints`, made once in a session."""
    from tests.helpers.checkpoints import make_checkpoint

    return functools.cache(lambda name: make_checkpoint(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def cheap_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn where matplotlib puts them by default: to lay them out takes longer than to draw them.

    The quick tests of figures, and of the sections of the tour, lay them out.
    """
    monkeypatch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda engine, figure: {})


@pytest.fixture
def cheap_pictures(monkeypatch: pytest.MonkeyPatch, cheap_layout: None) -> None:
    """Callbacks draw less: no curves, no plots of points, three frames of a trajectory.

    Each of them takes longer than a run of six steps, and has tests of its own.
    """
    import numpy as np

    from zoo.callbacks import samples

    def black_pixel(*values: Any, **options: Any) -> np.ndarray:
        return np.zeros((1, 1, 3), dtype=np.uint8)

    def three_frames(states: Any, columns: int | None = None) -> list[np.ndarray]:
        return render_frames(states[:: len(states) // 2 or 1], columns)

    render_frames = samples.render_frames
    monkeypatch.setattr("zoo.callbacks.curves.plot_curves", black_pixel)
    monkeypatch.setattr("zoo.plotting.samples.plot_points", black_pixel)
    monkeypatch.setattr(samples, "render_frames", three_frames)


@pytest.fixture
def reports() -> None:
    """Lets the runs of a test write their reports, which they otherwise do not."""


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no report, which is a tenth of a short run: hundreds of them would take as long as many tests.

    A test that asks for `reports` has them, and so have runs in processes of their own.
    """
    if "reports" not in request.fixturenames:
        monkeypatch.setattr("zoo.callbacks.run_report.RunReport.on_fit_end", lambda *_: None)


@pytest.fixture
def cheap_reports(monkeypatch: pytest.MonkeyPatch, cheap_pictures: None) -> None:
    """Callbacks draw less, and the report on the equilibrium compares 500 points."""
    from zoo.callbacks import equilibrium

    def on_500_points(x: Any, y: Any, seed: int = 0) -> float:
        return two_sample_accuracy(x[:500], y[:500], seed)

    two_sample_accuracy = equilibrium.two_sample_accuracy
    monkeypatch.setattr(equilibrium, "two_sample_accuracy", on_500_points)
