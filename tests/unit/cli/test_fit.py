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


def test_predict_writes_a_new_table_each_time_unless_it_is_to_overwrite_one(checkpoints, tmp_path, monkeypatch, capsys):
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
    main([*command, "--trainer.limit_predict_batches=1"])
    assert Path("predictions.csv").read_text() == text
    first = Path("predictions-1.csv").read_text()
    message = fails(capsys, *command, "--out", "predictions.csv")
    assert message == "predictions.csv exists already; choose another name, or replace the file with --overwrite"
    main([*command, "--trainer.limit_predict_batches=1", "--out", "predictions.csv", "--overwrite"])
    assert Path("predictions.csv").read_text() == first
