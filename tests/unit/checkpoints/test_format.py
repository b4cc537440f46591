"""What a checkpoint says of the data, the versions and the metric that it was chosen by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from zoo import MLPClassifier
from zoo.callbacks import BestAndLastCheckpoint
from zoo.checkpoints.format import FORMAT, TrainingData
from zoo.checkpoints.reading import check_checkpoint, read_checkpoint
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.pictures.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints best.ckpt and last.ckpt of a short training on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    best = BestAndLastCheckpoint("val/acc", "max")
    best.dirpath = str(folder)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[best], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(MLPClassifier((1, 8, 8), 10, width=16, depth=1), datamodule=Digits())
    return folder


def test_a_checkpoint_knows_its_classes_and_preprocessing(folder):
    checkpoint = read_checkpoint(folder / "last.ckpt")
    assert checkpoint["data"] == {
        "class_names": list("0123456789"),
        "preprocessing": {
            "size": [8, 8], "channels": 1, "fit": "crop", "background": [0, 0, 0], "range": [-1.0, 1.0]
        },
        "mirror_symmetric": False,
    }  # fmt: skip
    assert checkpoint["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert set(checkpoint["versions"]) >= {"python", "lightning", "lightning-zoo"}


def test_a_checkpoint_knows_the_metric_that_it_was_chosen_by(folder):
    best = read_checkpoint(folder / "best.ckpt")
    saved = next(state for name, state in best["callbacks"].items() if "BestAndLast" in name)
    assert best["monitor"]["metric"] == "val/acc"
    assert best["monitor"]["mode"] == "max"
    assert best["monitor"]["best"] == pytest.approx(saved["best_model_score"].item())


def test_a_loaded_model_knows_what_it_was_trained_on(folder):
    model = MLPClassifier.load_from_checkpoint(folder / "best.ckpt", weights_only=True)
    assert model.trained_on == TrainingData(tuple("0123456789"), Preprocessing((8, 8), 1, background=(0, 0, 0)), False)


def damaged(**entries: Any) -> dict[str, Any]:
    """A checkpoint with these entries."""
    return {"state_dict": {}, "format": FORMAT, **entries}


GOOD = {"size": [8, 8]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data": {"class_names": "ab"}}, "class_names 'ab', which are not a list of strings"),
        ({"data": {"class_names": [1]}}, "class_names"),
        ({"data": {"colour": 1}}, "must be a mapping of class_names"),
        ({"data": {"mirror_symmetric": 1}}, "mirror_symmetric 1"),
        ({"data": {"preprocessing": {}}}, "must be a mapping"),
        ({"data": {"preprocessing": {**GOOD, "code": "x"}}}, "must be a mapping"),
        ({"data": {"preprocessing": {"size": [8, 0]}}}, "size"),
        ({"data": {"preprocessing": {"size": [8, 10**9]}}}, "size"),
        ({"data": {"preprocessing": {**GOOD, "channels": 2}}}, "channels 2"),
        ({"data": {"preprocessing": {**GOOD, "fit": "squash"}}}, "fit 'squash'"),
        ({"data": {"preprocessing": {**GOOD, "background": [0, 0, 256]}}}, "background"),
        ({"data": {"preprocessing": {**GOOD, "range": [1.0, 0.0]}}}, "range"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"monitor": {"metric": "val/acc"}}, "monitor"),
        ({"monitor": {"metric": "val/acc", "mode": "max", "best": "0.9"}}, "monitor"),
    ],
)
def test_damage_is_reported_in_one_line_when_the_file_is_read(entries, message, tmp_path):
    torch.save(damaged(**entries), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt is damaged: .*" + message):
        read_checkpoint(tmp_path / "a.ckpt")


class OtherDigits(Digits):
    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "nine", "eight")


def test_data_with_other_classes_is_refused(folder):
    model = MLPClassifier((1, 8, 8), 10, width=16, depth=1)
    check_checkpoint(folder / "best.ckpt", model, Digits())
    with pytest.raises(UserError, match="class 8 is 8 in it and nine in the data"):
        check_checkpoint(folder / "best.ckpt", model, OtherDigits())
