"""The command predict and its table of predictions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.helpers.command import fails
from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.cli.main import main
from zoo.datamodules import Digits


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Two untrained classifiers of digits."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in range(2):
        torch.manual_seed(seed)
        trainer = quiet_trainer()
        trainer.strategy.connect(MLPClassifier((1, 8, 8), 10, width=8, depth=1))
        trainer.save_checkpoint(folder / f"{seed}.ckpt")
    return [str(folder / f"{seed}.ckpt") for seed in range(2)]


OPTIONS = [
    "--config=mlp.yaml",
    "--trainer.accelerator=cpu",
    "--data=Digits",
    "--model.width=8",
    "--model.depth=1",
    "--model.batch_norm=false",
]


def test_predict_writes_a_table_by_default_and_does_not_overwrite_it(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["predict", *OPTIONS, "--ckpt_path", checkpoints[0], "--model.mc_samples=3"]
    main([*command, f"--model.ensemble=[{checkpoints[1]}]"])
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]
    text = Path("predictions.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    _, labels = Digits().load_split(train=False)
    assert [int(row["index"]) for row in rows] == list(range(297))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert all(float(row["mutual_information"]) > 0 for row in rows)
    message = fails(capsys, *command)
    assert message == "predictions.csv exists already and is not overwritten; choose another name"
    assert Path("predictions.csv").read_text() == text
