"""Resuming a run: its metrics continue, its configuration is kept, and the newest complete checkpoint is found."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from tests.helpers.command import fails, tree
from tests.helpers.short_runs import folder_of, interrupted, mlp_arguments
from zoo.callbacks import SampleLogger
from zoo.checkpoints.resume import find_last
from zoo.cli.fit import run_trainer
from zoo.cli.main import main
from zoo.distributed.signals import Stopped
from zoo.tracking.run_folders import RunLock

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder of a finished run of eight steps, which tests copy."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        main(mlp_arguments("--trainer.max_steps=8"))
    return folder / "runs"


@pytest.fixture
def run(runs, in_an_empty_folder) -> Path:
    """The checkpoints of a finished run of eight steps in the working folder."""
    shutil.copytree(runs, "runs")
    return folder_of("run") / "checkpoints"


# The same run


def test_metrics_continue_without_gaps_or_duplicates_whatever_was_logged_after_the_checkpoint():
    with pytest.raises(Stopped):
        main(mlp_arguments(*interrupted(23)))
    table = folder_of("run") / "metrics.csv"
    rows = list(csv.DictReader(table.open()))
    with table.open("a") as file:  # what the run would have logged if it had been killed later
        file.write(table.read_text().splitlines()[-1] + "\n" + table.read_text().splitlines()[-1][:7])
    main(mlp_arguments("--ckpt_path=last"))
    after = list(csv.DictReader(table.open()))
    assert after[: len(rows)] == rows
    steps = [int(row["step"]) for row in after]
    assert steps == sorted(steps)
    assert [int(row["step"]) for row in after if row["train/loss"]] == list(range(4, 45, 5))
    assert [int(row["step"]) for row in after if row["val/loss"]] == list(range(6, 45, 7))


def test_the_configuration_of_each_start_is_kept():
    with pytest.raises(Stopped):
        main(mlp_arguments(*interrupted(3)))
    first = (folder_of("run") / "config.yaml").read_text()
    main(mlp_arguments("--ckpt_path=last", "--trainer.max_steps=8"))
    assert (folder_of("run") / "config.yaml").read_text() == first
    second = yaml.safe_load((folder_of("run") / "config-1.yaml").read_text())
    assert second["trainer"]["max_steps"] == 8
    assert "ckpt_path" not in second, "repeating the configuration does not resume"


def test_a_run_in_progress_is_not_resumed(run, capsys):
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(folder_of("run"), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process does
    try:
        line = fails(capsys, *mlp_arguments("--ckpt_path=last"))
    finally:
        os.close(handle)
    assert line.startswith("the run in runs/run/version_0 is still in progress")
    assert (run / "last.ckpt").is_file()


def test_a_checkpoint_that_is_named_starts_a_run_of_its_own(run):
    before = {path: path.read_bytes() for path in folder_of("run").rglob("*.c*")}
    trainer = run_trainer(mlp_arguments(f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=12")).trainer
    assert Path(trainer.log_dir) == folder_of("run", 1)
    assert trainer.global_step == 12
    assert before == {path: path.read_bytes() for path in before}
    RunLock.release()


def test_an_early_stopped_run_stays_stopped_on_resume(caplog):
    # A learning rate of zero: the metric never falls.
    still = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0", "--trainer.callbacks+=EarlyStopping",
             "--trainer.callbacks.monitor=val/acc", "--trainer.callbacks.mode=max",
             "--trainer.callbacks.patience=1")  # fmt: skip
    main(mlp_arguments(*still))
    last = folder_of("run") / "checkpoints" / "last.ckpt"
    steps = torch.load(last, weights_only=True)["global_step"]
    assert steps == 14, "two validations"
    before, rows = last.read_bytes(), (folder_of("run") / "metrics.csv").read_text()
    with caplog.at_level("INFO"):
        main(mlp_arguments(*still, "--ckpt_path=last"))
    assert "The run was stopped early by val/acc, so there is nothing to resume" in caplog.text
    assert last.read_bytes() == before
    assert (folder_of("run") / "metrics.csv").read_text() == rows


# The newest complete checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_of_runs_of_one_name_the_newest_with_the_same_options_is_resumed_and_else_none(run, caplog, capsys):
    main(mlp_arguments("--trainer.max_steps=8", "--model.width=24"))
    main(mlp_arguments("--trainer.max_steps=8", "--seed_everything=1"))
    with caplog.at_level("INFO"):
        main(mlp_arguments("--trainer.max_steps=12", "--ckpt_path=last", "--data.batch_size=16"))
    for words in (
        "Skipping runs/run/version_2: it is another run (seed_everything: 1 in the run, 0 now)",
        "Skipping runs/run/version_1: it is another run (model.width: 24 in the run, 16 now)",
        "Resuming runs/run/version_0 from last.ckpt, after 8 steps",
        "changed: data.batch_size: 32 in the run, 16 now",
    ):
        assert words in caplog.text
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 12
    before = tree(Path("runs"))
    line = fails(capsys, *mlp_arguments("--ckpt_path=last", "--data.val_size=50"))
    assert line.startswith("--ckpt_path last: runs/run/version_2 is another run (")
    assert tree(Path("runs")) == before


@pytest.mark.parametrize("spoil", [cut, damage, empty])
def test_an_incomplete_checkpoint_is_named_and_the_one_before_it_is_resumed(run, spoil: Callable, caplog):
    with caplog.at_level("INFO"):
        assert find_last("runs", "run", lambda folder: "", lambda path: None).path == run / "last.ckpt"
        spoil(run / "last.ckpt")
        with pytest.warns(UserWarning, match=r"Skipping .*last\.ckpt: it is not a complete checkpoint"):
            found = find_last("runs", "run", lambda folder: "", lambda path: None)
    assert found.path == run / "best.ckpt"
    assert found.logged["RunCSVLogger"] > 0
    assert f"Resuming {run.parent} from best.ckpt, after 7 steps" in caplog.text


def test_without_a_checkpoint_the_run_starts_from_scratch_and_says_so(caplog):
    with caplog.at_level("INFO"):
        main(mlp_arguments("--ckpt_path=last", "--trainer.max_steps=8"))
    assert "--ckpt_path last: there is no checkpoint in runs/run, so the run starts from scratch" in caplog.text
    assert (folder_of("run") / "checkpoints" / "last.ckpt").is_file()


def test_last_is_for_fit_alone_and_every_other_word_is_a_file(capsys):
    options = mlp_arguments()[1:]
    assert "--ckpt_path last is for fit" in fails(capsys, "validate", *options, "--ckpt_path=last")
    assert fails(capsys, "fit", *options, "--ckpt_path=hpc") == "--ckpt_path hpc is not a file"
    assert fails(capsys, "test", *options, "--ckpt_path=") == "--ckpt_path '' is not a file"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_nothing_is_measured_with_random_weights(command, run, capsys):
    line = fails(capsys, command, *mlp_arguments()[1:])
    assert line == (
        f"{command} without a checkpoint measures a MLPClassifier of random weights: give "
        "--ckpt_path runs/run/version_0/checkpoints/best.ckpt"
    )


def test_a_run_whose_folder_is_removed_ends_with_one_line(capsys):
    line = fails(capsys, *mlp_arguments(f"--trainer.callbacks+={__name__}.RemovesTheRun"))
    assert line == "runs/run/version_0 was removed while the run was writing to it; start the run again"


class RemovesTheRun(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            shutil.rmtree("runs")


# Callbacks


def test_the_animation_of_a_resumed_run_is_written_by_rank_0_only():
    folder = Path("run") / "samples"
    folder.mkdir(parents=True)
    names = ["step_0000000.png", "step_0000010.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    films = []
    for rank in (1, 0):
        callback = SampleLogger(n=4)
        trainer = SimpleNamespace(
            global_step=10, is_global_zero=rank == 0, log_dir="run", loggers=[None], fast_dev_run=False, strategy=None
        )
        model = SimpleNamespace(sample=len)
        callback.setup(trainer, model, "fit")
        callback.load_state_dict({"last_step": 10, "images": names})
        callback.on_train_start(trainer, model)
        trainer.loggers = []  # there is nothing to send the animation to
        callback.on_train_end(trainer, model)
        films.append((folder / "film.gif").exists())
    assert films == [False, True]
