"""`zoo.load`: models from checkpoints and runs, and what they predict."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

import zoo
from tests.helpers.checkpoints import save_untrained
from zoo.checkpoints.format import TrainingData
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.plotting import show


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with the checkpoint of a classifier of digits."""
    folder = tmp_path_factory.mktemp("run")
    seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=10, enable_model_summary=False, limit_val_batches=0, **quiet)
    trainer.fit(zoo.MLPClassifier((1, 8, 8), 10, width=64, depth=1), datamodule=Digits())
    trainer.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    return folder


def test_a_checkpoint_or_its_run_gives_the_model_in_eval_mode(run):
    model = zoo.load(run)
    assert type(model) is zoo.MLPClassifier
    assert not model.training
    assert model.classes == tuple("0123456789")
    again = zoo.load(run / "checkpoints" / "best.ckpt", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_best_checkpoint_of_a_run_is_preferred_to_the_last(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_untrained(zoo.MLPClassifier((1, 8, 8), 10, width=8, depth=1), tmp_path / "checkpoints" / "last.ckpt")
    assert zoo.load(tmp_path).hparams.width == 8
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "checkpoints")
    assert zoo.load(tmp_path).hparams.width == 64


def test_predictions_have_names_and_probabilities(run):
    data = Digits()
    data.setup("test")
    test = data.dataset("test")
    model = zoo.load(run)
    predictions = model.predict(test.x, batch_size=100)
    assert len(predictions) == 297
    assert (predictions.labels == test.y).float().mean() > 0.8
    first = predictions[0]
    assert first.class_name == predictions.names[0] == str(predictions.labels[0].item())
    assert first.probability == max(first.probabilities.values())
    assert sum(first.probabilities.values()) == pytest.approx(1)
    p = predictions.probabilities
    torch.testing.assert_close(predictions.entropy, -(p * p.log()).sum(1))
    assert f"<td>{first.class_name}</td><td>{first.probability:.3f}</td>" in predictions._repr_html_()
    assert len(model.predict([])) == 0


def test_classes_have_numbers_unless_there_is_one_name_for_each():
    model = zoo.MLPClassifier((1, 8, 8), 3, width=4, depth=1)
    for names, expected in {None: "012", ("a", "b"): "012", ("a", "b", "c"): "abc"}.items():
        model.trained_on = TrainingData(names)
        assert model.classes == tuple(expected)
        assert set(model.predict(torch.zeros(1, 8, 8))[0].probabilities) == set(expected)


def test_samples_show_themselves():
    picture = show(torch.zeros(4, 1, 8, 8))
    assert picture.size == (2 * 32 + 3 * 2, 2 * 32 + 3 * 2)
    assert callable(picture._repr_png_)


def test_mistakes_are_one_line(run, tmp_path):
    with pytest.raises(
        UserError,
        match="neither a checkpoint, the folder of a run or of a saved model, a trained model of the zoo, nor",
    ):
        zoo.load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no checkpoints/best\.ckpt, checkpoints/last\.ckpt or config\.json"):
        zoo.load(tmp_path)
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="it has the runs version_0: name one of them"):
        zoo.load(tmp_path)
    with pytest.raises(UserError, match="device nowhere is not available here"):
        zoo.load(run, device="nowhere")
