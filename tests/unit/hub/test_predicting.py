"""Predictions for files: equal to those of the data module, in order, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import Diffusion, MLPClassifier, ResNetClassifier, ViTClassifier
from zoo.checkpoints.format import TrainingData
from zoo.datamodules import ImageFolder
from zoo.errors import UserError
from zoo.hub.predicting import predict_files, write_predictions
from zoo.models.predictions import Predictions
from zoo.pictures.preprocessing import Preprocessing


class Brightness(nn.Module):
    """A classifier that is told by the first pixel: of black pictures 1 in 2 are bright, of white ones all."""

    input_shape = (1, 2, 2)
    trained_on = TrainingData(None, Preprocessing((2, 2), 1))

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.places: list[int] = []

    def predictive(self, x, places=None):
        self.sizes.append(len(x))
        self.places += [] if places is None else places.tolist()
        p = (3 + x[:, 0, 0, 0]) / 4
        return Predictions(torch.stack([1 - p, p], 1).log(), p, 0 * p, ("dark", "bright"))


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Ten pictures of grey levels 0, 10, 20, …, of which 0, 4, 5 and 9 are broken."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        Image.new("L", (3, 3), 10 * i).save(path)
        if i in (0, 4, 5, 9):
            path.write_bytes(b"bad")
    return paths


@pytest.mark.parametrize(
    "model",
    [
        lambda *shape: MLPClassifier(*shape, width=8, depth=1),
        lambda *shape: ResNetClassifier(*shape, depth=8, widths=[4, 8, 8]),
        lambda *shape: ViTClassifier(*shape, layers=1, width=16, heads=2),
    ],
)
def test_predictions_equal_those_of_the_data_module(tmp_path, model):
    generator = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (20 + i, 30, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    data = ImageFolder(str(tmp_path), image_size=16, fit="pad", background="#204080", test_size=0.5)
    classifier = model(data.input_shape, data.num_classes)
    nn.init.normal_(list(classifier.parameters())[-2])  # the last layer of a ViT is zero
    (expected,) = quiet_trainer().predict(classifier, datamodule=data)
    (part,) = predict_files(classifier, data.paths("test"))
    assert expected.probabilities.std() > 0.01
    torch.testing.assert_close(part.prediction.probabilities, expected.probabilities, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (4, [4, 2]), (100, [6])])
def test_files_keep_their_order_and_batches_their_size_around_broken_files(files, batch_size, sizes):
    model = Brightness()
    parts = list(predict_files(model, files, batch_size))
    assert model.sizes == sizes
    assert model.places == [1, 2, 3, 6, 7, 8], "a file's place, whatever its batch"
    assert [path for part in parts for path in part.paths] == files
    found = {}
    for part in parts:
        assert sorted([*part.readable, *part.problems]) == list(range(len(part.paths)))
        for position, p in zip(part.readable, part.prediction.entropy.tolist() if part.prediction else [], strict=True):
            found[int(part.paths[position].stem)] = p
    assert found == {i: pytest.approx((3 + 10 * i / 127.5 - 1) / 4) for i in (1, 2, 3, 6, 7, 8)}


def test_only_a_few_files_are_decoded_ahead(monkeypatch):
    decoded = []

    def decode(path, *options):
        decoded.append(path)
        return np.zeros((2, 2, 1), np.uint8)

    monkeypatch.setattr("zoo.pictures.decoding.decode_image", decode)
    monkeypatch.setattr("zoo.pictures.threads.usable_cores", lambda: 2)
    parts = predict_files(Brightness(), [Path(f"{i}") for i in range(4_000)], 100)
    next(parts)
    assert 100 <= len(decoded) < 1000
    assert 100 + sum(len(part.paths) for part in parts) == 4_000


def test_the_table_has_a_row_for_each_file_and_the_reason_for_broken_ones(files, tmp_path):
    done = []
    assert write_predictions(Brightness(), files, tmp_path / "table.csv", 3, done.append) == 4
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == "path,class,class_name,probability,p(0),p(1),entropy,mutual_information,error"
    assert lines[1] == f"{files[0]},,,,,,,,not an image"
    p = 0.5 + 30 / 510
    assert lines[4] == f"{files[3]},1,1,{p:.7g},{1 - p:.7g},{p:.7g},{p:.7g},0,"
    assert len(lines) == 11 and sum(done) == 10


def test_an_error_while_predicting_leaves_no_table(files, tmp_path):
    class Failing(Brightness):
        def predictive(self, x, places=None):
            if places is not None and places[0] > 2:
                raise KeyboardInterrupt
            return super().predictive(x)

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Failing(), files, tmp_path / "table.csv", 2)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Diffusion((2,)), "Diffusion is not a classifier"),
        (lambda: MLPClassifier((2,), 2, width=4, depth=1), r"trained on samples of the shape \(2,\), not on pictures"),
        (lambda: MLPClassifier((1, 4, 4), 2, width=4, depth=1), "does not know how pictures are brought to its input"),
        (
            lambda: SimpleNamespace(input_shape=(1, 3, 3), predictive=print, trained_on=Brightness.trained_on),
            r"makes \(1, 2, 2\), and it takes",
        ),
    ],
)
def test_a_model_that_does_not_classify_pictures_is_refused_before_anything_is_written(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        write_predictions(model(), [], tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())
