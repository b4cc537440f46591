"""The contract between data modules and models, tested for each data module."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.training import quiet_trainer
from zoo.datamodules import Digits, FashionMNIST, ImageFolder, InMemoryDataModule, Points

MODULES = ("digits", "gaussians", "ring", "grid", "moons", "image_folder", "fashion_mnist")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """Three classes of 20 images of 12 x 12 pixels."""
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(["bird", "cat", "dog"]):
        (root / name).mkdir()
        for i in range(20):
            Image.new("RGB", (12, 12), (13 * i, 127 * label, 255)).save(root / name / f"{i:02}.png")
    return root


class CachedFashionMNIST(FashionMNIST):
    """Reads its files once for all tests."""

    def load_split(self, train):
        return _fashion_mnist(self.root, train)


@cache
def _fashion_mnist(root: str, train: bool) -> tuple[Tensor, Tensor]:
    return FashionMNIST(root).load_split(train)


@pytest.fixture(params=MODULES)
def make(request):
    """Factory of a data module, small if its size can be chosen."""
    if request.param == "digits":
        return Digits
    if request.param == "image_folder":
        root = request.getfixturevalue("image_folder")
        return lambda **options: ImageFolder(str(root), **{"image_size": 8, "batch_size": 16, **options})
    if request.param == "fashion_mnist":
        root = request.getfixturevalue("shared_data")
        if not (root / "FashionMNIST").is_dir():
            pytest.skip(f"no FashionMNIST in {root}")
        return lambda **options: CachedFashionMNIST(str(root), **options)
    sizes = {"num_train": 1000, "num_test": 300, "val_size": 200}
    return lambda **options: Points(request.param, **{**sizes, **options})


class Linear(pl.LightningModule):
    """A linear model that keeps its batches."""

    def __init__(self, data: InMemoryDataModule) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(torch.Size(data.input_shape).numel(), data.num_classes)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_shapes_and_classes_are_known_before_setup_and_correct(make):
    data = make()
    shape, num_classes, names = data.input_shape, data.num_classes, data.class_names
    assert len(names) == num_classes
    assert all(isinstance(name, str) for name in names)
    data.setup()
    for split in ("train", "val", "test"):
        x, y = data.split(split)
        assert x.shape == (len(y), *shape)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert y.ndim == 1
        assert y.min() >= 0
        assert y.max() < num_classes
    assert (data.input_shape, data.num_classes, data.class_names) == (shape, num_classes, names)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
def test_a_lightning_module_gets_floats_in_unit_range_and_int64_labels(make):
    data = make()
    model = Linear(data)
    run = quiet_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1, limit_test_batches=1)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert len(model.seen) == 4
    for x, y in model.seen:
        assert x.dtype == torch.float32
        assert x.shape[1:] == data.input_shape
        assert y.dtype == torch.int64
        assert y.shape == x.shape[:1]
        if len(data.input_shape) == 3:
            assert x.min() >= -1
            assert x.max() <= 1
            assert x.max() > 0.5
    assert len(model.seen[0][0]) == data.batch_size


def test_training_and_validation_samples_partition_the_training_split(make, monkeypatch):
    data = make()
    _, labels = data.load_split(train=True)
    numbers = torch.arange(len(labels)).view(-1, *[1] * len(data.input_shape)).expand(-1, *data.input_shape)
    monkeypatch.setattr(data, "load_split", lambda train: (numbers, labels))
    data.setup("fit")
    (train, train_labels), (val, val_labels) = data.split("train"), data.split("val")
    train, val = train.flatten(1)[:, 0], val.flatten(1)[:, 0]
    together, labels_together = torch.cat([train, val]), torch.cat([train_labels, val_labels])
    assert torch.equal(together.sort().values, torch.arange(len(labels)))
    assert torch.equal(labels_together, labels[together])  # labels stay with their samples
    assert len(val) > 0
    assert not torch.equal(train, train.sort().values)


def test_the_same_seed_gives_the_same_splits(make):
    first, second = make(seed=3), make(seed=3)
    first.setup("fit")
    second.setup("fit")
    for split in ("train", "val"):
        for a, b in zip(first.split(split), second.split(split), strict=True):
            assert torch.equal(a, b)


def test_fit_and_validate_never_read_the_test_split(make, monkeypatch):
    data = make()
    read = data.load_split
    reads = []
    monkeypatch.setattr(data, "load_split", lambda train: reads.append(train) or read(train))
    data.setup("fit")
    data.setup("validate")
    assert reads == [True]
    data.setup("test")
    assert reads == [True, False]


def test_prediction_needs_no_training_samples(make):
    data = make()
    data.setup("predict")
    x, _ = next(iter(data.predict_dataloader()))
    assert x.shape[1:] == data.input_shape
