"""Loggers that `--trainer.logger` adds or replaces, and where they write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lightning.fabric.loggers.tensorboard as tensorboard
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from tests.helpers.loggers import FileLogger
from zoo.checkpoints.resume import ResumePoint
from zoo.cli.loggers import DEFAULT_LOGGERS, loggers_of_evaluation, loggers_of_run
from zoo.cli.parser import OneLineParser
from zoo.errors import UserError
from zoo.tracking.loggers import RunCSVLogger, RunWandbLogger
from zoo.tracking.run import Run
from zoo.tracking.wandb import WandbOptions

OFFLINE = WandbOptions(mode="offline")
FILE_LOGGER = f"{FileLogger.__module__}.{FileLogger.__name__}"


class UsersWandbLogger(WandbLogger):
    """W&B's logger with something of the user's own."""

    def __init__(self, save_dir: str = ".", offline: bool = False) -> None:
        super().__init__(save_dir=save_dir, offline=offline)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = Path("runs/gan/version_0")
    folder.mkdir(parents=True)
    return Run(folder, "gan", first=True)


def parse(*words: str):
    """The value of `trainer.logger`, as the command line parses it."""
    parser = OneLineParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--trainer.logger", type=Logger | Iterable[Logger] | bool | None)
    parser.set_defaults({"trainer.logger": DEFAULT_LOGGERS})
    return parser.parse_args(list(words)).trainer.logger


def build(run: Run, *words: str, options: WandbOptions = OFFLINE) -> list[Logger]:
    found = loggers_of_run(parse(*words), run, options)
    assert isinstance(found, list)
    return found


def kinds(loggers: list[Logger]) -> list[type]:
    return [type(logger) for logger in loggers]


OURS = [RunCSVLogger, RunWandbLogger]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], OURS),
        (["--trainer.logger=true"], OURS),
        (["--trainer.logger+=CSVLogger"], [*OURS, CSVLogger]),
        (["--trainer.logger+=CSVLogger", f"--trainer.logger+={FILE_LOGGER}"], [*OURS, CSVLogger, FileLogger]),
        (["--trainer.logger=CSVLogger"], [RunCSVLogger, CSVLogger]),
        ([f"--trainer.logger=[CSVLogger, {FILE_LOGGER}]"], [RunCSVLogger, CSVLogger, FileLogger]),
        (["--trainer.logger=WandbLogger"], OURS),
        (["--trainer.logger+=WandbLogger"], OURS),  # wandb has one run in a process
    ],
)
def test_a_logger_is_added_or_replaces_wandb_and_metrics_csv_is_always_first(words, expected, run):
    assert kinds(build(run, *words)) == expected
    assert build(run, *words)[0].log_dir == "runs/gan/version_0"


@pytest.mark.parametrize(("key", "expected"), [("logger+", [*OURS, CSVLogger]), ("logger", [RunCSVLogger, CSVLogger])])
def test_recipes_add_and_replace_as_well(key, expected, run):
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {key: "CSVLogger"}}))
    assert kinds(build(run, "--config=mine.yaml")) == expected


def test_no_logger_is_none_at_all_and_wandb_can_be_disabled(run):
    assert loggers_of_run(parse("--trainer.logger=false"), run, OFFLINE) is False
    assert kinds(build(run, options=WandbOptions(mode="disabled"))) == [RunCSVLogger]


def test_an_evaluation_has_the_named_loggers_only(run):
    assert loggers_of_evaluation(parse()) == []
    (logger,) = loggers_of_evaluation(parse("--trainer.logger+=CSVLogger"))
    assert type(logger) is CSVLogger and logger.root_dir == "./lightning_logs"


def test_each_logger_has_a_folder_of_its_own_inside_the_runs_unless_one_is_given(run):
    words = ["--trainer.logger+=CSVLogger"] * 2
    assert [logger.log_dir.rstrip("/") for logger in build(run, *words)[2:]] == [
        f"{run.folder}/csv",
        f"{run.folder}/csv-1",
    ]
    (run.folder / "csv").mkdir()  # of a run that is resumed; CSVLogger deletes what it finds
    assert Path(build(run, words[0])[2].log_dir) == run.folder / "csv-1"
    assert Path(build(run, words[0], "--trainer.logger.name=mine")[2].log_dir) == run.folder / "csv-1" / "mine"
    assert build(run, words[0], "--trainer.logger.save_dir=logs")[2].log_dir == "logs/lightning_logs/version_0"
    assert build(run, f"--trainer.logger={FILE_LOGGER}")[1].file == run.folder / "file" / "log.txt"


def test_tensorboard_writes_into_the_same_folder_when_the_run_is_resumed(run):
    pytest.importorskip("tensorboard")
    (run.folder / "tensorboard").mkdir()
    assert Path(build(run, "--trainer.logger=TensorBoardLogger")[1].log_dir) == run.folder / "tensorboard"


def test_other_ranks_do_not_build_loggers_that_may_write(run):
    other = Run(Path("runs/gan/version_of_rank_0"), "gan", first=False)
    assert kinds(build(other, f"--trainer.logger={FILE_LOGGER}")) == [RunCSVLogger, DummyLogger]
    assert not other.folder.exists()


def test_a_wandb_logger_of_the_user_wins_over_the_options_and_is_resumed_like_ours(run):
    (run.folder / "wandb" / "offline-run-20260101_000000-abc123").mkdir(parents=True)
    resumed = Run(run.folder, "gan", True, ResumePoint(Path("last.ckpt"), run.folder, {"RunWandbLogger": 5}))
    words = ["--trainer.logger=WandbLogger", "--trainer.logger.project=mine", "--trainer.logger.offline=true"]
    (_, logger) = build(resumed, *words, options=WandbOptions(mode="online"))
    assert isinstance(logger, RunWandbLogger)
    assert (logger._wandb_init["project"], logger._wandb_init["mode"], logger._wandb_init["id"]) == (
        "mine",
        "offline",
        "abc123",
    )
    assert (logger.rows, logger.save_dir) == (5, str(run.folder))


def test_a_subclass_of_wandb_logger_is_offline_without_a_key(run, monkeypatch):
    monkeypatch.setattr("zoo.tracking.wandb.has_wandb_credentials", lambda: False)
    (_, logger) = build(run, f"--trainer.logger={__name__}.UsersWandbLogger")
    assert isinstance(logger, UsersWandbLogger) and logger._offline and logger.save_dir == str(run.folder)


def test_a_logger_that_is_not_installed_names_the_package(run, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    for name, package in ((TensorBoardLogger.__name__, r"lightning-zoo\[tensorboard\]"), ("MLFlowLogger", "mlflow")):
        with pytest.raises(UserError, match=f"--trainer.logger {name} needs a package .*: pip install {package}$"):
            build(run, f"--trainer.logger+={name}")
