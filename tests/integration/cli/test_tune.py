"""The command tune: trials as runs of fit, their table and picture, the best options, and a study that continues."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from tests.helpers.command import MLP_RUN, read_rows
from zoo.cli import study
from zoo.cli.main import main
from zoo.cli.tune import split_options

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

SGD = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--trainer.enable_progress_bar=false"]
WORDS = [*MLP_RUN[1:], *SGD]
FOLDER = Path("runs/mlpclassifier_tune")
LR = "model.optimizer.lr"


def tune(text: str, *options: str) -> None:
    Path("space.yaml").write_text(text)
    main(["tune", *WORDS, "--search", "space.yaml", *options])


def rows() -> list[dict[str, str]]:
    with (FOLDER / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def config_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def lr_of(folder: Path) -> float:
    return config_of(folder)["model"]["init_args"]["optimizer"]["init_args"]["lr"]


class Interruption(Callback):
    """Sends this process SIGINT in the third run of a study if there is a file `interrupt`."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if Path("interrupt").exists() and Path(trainer.log_dir).name == "version_2":
            os.kill(os.getpid(), signal.SIGINT)


def test_options_of_tune_are_told_from_those_of_fit():
    words = ["--config", "a.yaml", "--trials", "3", "--data", "trials", "--search=s.yaml", "--model.metric", "--mode"]
    assert split_options(words) == (
        ["--trials", "3", "--search=s.yaml", "--mode"],
        ["--config", "a.yaml", "--data", "trials", "--model.metric"],
    )


@pytest.mark.slow
def test_trials_are_runs_and_a_study_is_continued(monkeypatch, capsys):
    """Trials with a tiny learning rate are pruned, those with a huge one fail, and the others are completed."""
    monkeypatch.setattr(study, "UNPRUNED_TRIALS", 1)
    monkeypatch.setattr(study, "UNPRUNED_VALIDATIONS", 0)
    space = f"{LR}: [0.1, 1.0e-9, 1.0e+30]"
    tune(space, "--trials=2")
    before = {row["trial"]: row for row in rows()}
    assert (before["0"]["state"], before["0"][LR]) == ("completed", "0.1"), "the first one has the recipe's own options"
    tune(space, "--trials", "6")
    output = capsys.readouterr().out
    found = {row["trial"]: row for row in rows()}
    assert {number: found[number] for number in before} == before
    assert len(found) == 6
    states = {(row[LR], row["state"], row["steps"]) for row in found.values()}
    assert {("0.1", "completed", "6"), ("1e-09", "pruned", "3")} <= states
    assert {state for lr, state, _ in states if lr == "1e+30"} == {"failed"}
    assert all("became nan" in row["reason"] or "became inf" in row["reason"] for row in rows() if not row["value"])
    for row in found.values():
        if row["state"] != "failed":
            assert lr_of(Path(row["folder"])) == float(row[LR])
            best = torch.load(Path(row["folder"], "checkpoints/best.ckpt"), weights_only=True)["callbacks"]
            scores = [state["best_model_score"] for name, state in best.items() if "BestAndLast" in name]
            assert float(scores[0]) == pytest.approx(float(row["value"]))
    assert np.asarray(Image.open(FOLDER / "trials.png")).std() > 5
    assert re.search(r"^6 trials: \d completed, \d \w+, \d \w+; runs/mlpclassifier_tune/trials\.csv", output, re.M)
    assert re.search(r"the recipe's own options: \S+ in trial 0$", output, re.M)

    (line,) = set(re.findall(r"^Next: zoo (.*)$", output, re.M))
    main([*shlex.split(line), "--run.name=best"])
    assert lr_of(Path("runs/best/version_0")) == 0.1
    assert config_of(Path("runs/best/version_0"))["model"]["init_args"]["width"] == 8, "as in the recipe"


@pytest.mark.slow
def test_an_interrupted_search_has_its_results_and_continues_with_the_same_trial(capsys):
    """With two seeds, whose mean is the value of a trial."""
    space = f"{LR}: {{low: 0.01, high: 1.0, log: true}}"
    options = ["--seeds=2", "--metric=val/acc", "--mode=max", f"--trainer.callbacks+={__name__}.Interruption"]
    Path("interrupt").touch()
    with pytest.raises(SystemExit) as stop:
        tune(space, "--trials=2", *options)
    assert stop.value.code == 128 + signal.SIGINT
    assert "Stopped after 1 trials; the same command continues the study" in capsys.readouterr().out
    (first,) = rows()
    Path("interrupt").unlink()
    tune(space, "--trials=2", *options)
    assert sorted(row["trial"] for row in rows()) == ["0", "2"] and first in rows()

    folders = [FOLDER / f"version_{number}" for number in range(5)]
    assert first["folder"] == f"{folders[0]} {folders[1]}"
    assert [config_of(folder)["seed_everything"] for folder in folders] == [0, 1, 0, 0, 1]
    rates = [lr_of(folder) for folder in folders]
    assert rates[0] == rates[1] == 0.1 and rates[2] == rates[3] == rates[4] != 0.1
    best = [max(float(row["val/acc"]) for row in read_rows(folder) if row["val/acc"]) for folder in folders[:2]]
    assert float(first["value"]) == pytest.approx(sum(best) / 2) and best[0] != best[1]
