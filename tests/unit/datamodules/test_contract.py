"""The contract between data modules and models, for each data module: the checks that plugins run as well."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from zoo.datamodules import (
    Augment,
    Digits,
    FashionMNIST,
    FashionMNISTSubset,
    ImageFolder,
    InMemoryDataModule,
    Points,
    Sequences,
    Text,
)
from zoo.testing import check_datamodule

MODULES = ("digits", "augmented", "gaussians", "ring", "grid", "moons", "sequences", "text", "image_folder")
#: Of these, not those of 70,000 images, every one of which is read several times.
CHECKS_OF_LARGE_DATA = ("attributes", "batches", "splits", "held_out_test", "prediction")


class Linear(LightningModule):
    """A linear model that keeps its batches, for the tests of single data modules."""

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


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """Three classes of 20 images of 12 x 12 pixels."""
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(["bird", "cat", "dog"]):
        (root / name).mkdir()
        for i in range(20):
            Image.new("RGB", (12, 12), (13 * i, 127 * label, 255)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture
def make(request, tmp_path):
    """Factory of a data module, small if its size can be chosen."""
    sizes = {"num_train": 1000, "num_test": 301, "val_size": 201}
    if request.param in ("digits", "augmented"):
        return partial(Digits, augment=Augment(crop=1) if request.param == "augmented" else None)
    if request.param == "image_folder":
        root = request.getfixturevalue("image_folder")
        return partial(ImageFolder, str(root), **{"image_size": 8, "batch_size": 16})
    if request.param == "sequences":
        return partial(Sequences, digits=4, **sizes)
    if request.param == "text":
        (tmp_path / "text.txt").write_text(" ".join(str(number**2) for number in range(2000)))
        return partial(Text, str(tmp_path / "text.txt"), "characters", context_length=8, test_size=0.1)
    return partial(Points, request.param, **sizes)


every_module = pytest.mark.parametrize("make", MODULES, indirect=True)


@every_module
def test_every_data_module_keeps_the_contract(make):
    check_datamodule(make)


def test_the_included_clothes_keep_the_contract():
    check_datamodule(FashionMNISTSubset, checks=CHECKS_OF_LARGE_DATA)


def test_large_data_keep_the_contract(shared_data):
    if not (shared_data / "FashionMNIST").is_dir():
        pytest.skip(f"no FashionMNIST in {shared_data}")
    check_datamodule(FashionMNIST, checks=CHECKS_OF_LARGE_DATA, root=str(shared_data))


@pytest.mark.parametrize("make", [name for name in MODULES if name != "text"], indirect=True)
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
