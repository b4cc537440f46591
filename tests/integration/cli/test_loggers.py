"""Runs with other loggers: the folder, the checkpoints and metrics.csv stay the run's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers.command import MLP_RUN, TINY, read_rows
from tests.helpers.loggers import FileLogger
from zoo.callbacks.run_folder import run_folder
from zoo.cli.main import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

RUNS = Path("runs/mlpclassifier")
OWN = {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
FILE_LOGGER = f"{FileLogger.__module__}.{FileLogger.__name__}"


class FolderMarker(Callback):
    """Writes a file into the run's folder, as SampleLogger does."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if folder := run_folder(trainer):
            (folder / "marker").touch()


MARKER = f"--trainer.callbacks+={__name__}.FolderMarker"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_added_loggers_write_into_the_folder_of_each_run_and_of_a_resumed_one():
    added = ["--trainer.logger+=CSVLogger", f"--trainer.logger+={FILE_LOGGER}", "--trainer.logger.title=mine", MARKER]
    expected = OWN | {"metrics.csv", "csv/metrics.csv", "file/mine.txt", "marker"}
    for _ in range(2):
        main([*MLP_RUN, *added])
    assert files(RUNS / "version_0") == files(RUNS / "version_1") == expected
    assert files(Path()) == {str(RUNS / f"version_{k}" / name) for k in (0, 1) for name in expected}
    rows = read_rows(RUNS / "version_1")
    main([*MLP_RUN, *added, "--ckpt_path=last", "--trainer.max_steps=9"])
    assert files(RUNS / "version_1") == expected | {"csv-1/metrics.csv", "config-1.yaml"}
    assert read_rows(RUNS / "version_1")[: len(rows)] == rows == read_rows(RUNS / "version_1" / "csv")
    steps = [int(line.split()[0]) for line in (RUNS / "version_1/file/mine.txt").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 8


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_a_recipe_with_tensorboard_has_its_events_in_the_folder_and_is_repeated_in_another():
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"logger+": [{"class_path": "TensorBoardLogger"}]}}))
    main([*MLP_RUN, "--config=mine.yaml"])
    main(["fit", "--config=runs/mine/version_0/config.yaml"])
    for version in (0, 1):
        folder = Path("runs/mine") / f"version_{version}"
        (events,) = (folder / "tensorboard").glob("events.out.tfevents.*")
        assert events.stat().st_size > 500
        assert files(folder) >= OWN | {"metrics.csv"}
    assert {path.name for path in Path.cwd().iterdir()} == {"mine.yaml", "runs"}
    main(["test", "--ckpt_path=runs/mine/version_0/checkpoints/best.ckpt", TINY[0], "--trainer.limit_test_batches=1"])
    assert {path.name for path in Path.cwd().iterdir()} == {"mine.yaml", "runs"}, "an evaluation logs nothing"


def test_a_run_without_loggers_has_its_folder_and_can_be_resumed():
    for _ in range(2):
        main([*MLP_RUN, "--trainer.logger=false", MARKER])
    assert files(Path()) == {str(RUNS / f"version_{k}" / name) for k in (0, 1) for name in OWN | {"marker"}}
    main([*MLP_RUN, "--trainer.logger=false", "--ckpt_path=last", "--trainer.max_steps=9"])
    assert files(RUNS / "version_1") == OWN | {"marker", "config-1.yaml"}
