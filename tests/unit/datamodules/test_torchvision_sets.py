"""The readers of torchvision's datasets, with stand-ins for the datasets."""

from __future__ import annotations

from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

from zoo.datamodules import CIFAR10, MNIST, FashionMNIST
from zoo.errors import UserError

SIZES = {True: 30, False: 10}


@pytest.fixture
def sets(monkeypatch):
    """Replaces torchvision's classes; the data exists if `sets["exists"]`, and `sets["downloads"]` lists downloads."""
    state = {"exists": True, "error": URLError("no network"), "downloads": []}

    def open_set(name, root, train, download):
        if download:
            state["downloads"].append((name, train))
            if state["error"]:
                raise state["error"]
            state["exists"] = True
        if not state["exists"]:
            raise RuntimeError("Dataset not found. You can use download=True to download it\nand more")

    class GreySet:
        def __init__(self, root, train, download):
            open_set("MNIST", root, train, download)
            self.data = torch.arange(SIZES[train], dtype=torch.uint8).view(-1, 1, 1).repeat(1, 28, 28)
            self.data[:, 0, 1] = 255
            self.targets = torch.arange(SIZES[train]) % 10

    class ColorSet:
        def __init__(self, root, train, download):
            open_set("CIFAR10", root, train, download)
            self.data = np.zeros((SIZES[train], 32, 32, 3), dtype=np.uint8)
            self.data[:, 0, 1] = (10, 20, 30)
            self.targets = [i % 10 for i in range(SIZES[train])]

    monkeypatch.setattr(torchvision.datasets, "MNIST", GreySet)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", GreySet)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", ColorSet)
    return state


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_images_are_bytes_with_channels_first_and_labels_int64(kind, sets):
    data = kind("anywhere", val_size=5)
    for train, size in SIZES.items():
        x, y = data.load_split(train)
        assert x.shape == (size, *data.input_shape)
        assert x.dtype == torch.uint8
        assert x.is_contiguous()
        assert y.dtype == torch.int64
        assert y.tolist() == [i % 10 for i in range(size)]
    assert x[3, :, 0, 1].tolist() == ([10, 20, 30] if kind is CIFAR10 else [255])  # row 0, column 1
    assert not x[:, :, 1, 0].eq(x[:, :, 0, 1]).all()


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_a_cache_on_disk_has_the_same_samples(kind, sets, tmp_path):
    splits = []
    for cache in ("memory", "disk", "disk"):
        data = kind("anywhere", val_size=5, cache=cache, cache_dir=str(tmp_path))
        data.prepare_data()
        data.setup()
        splits.append([data.split(name) for name in ("train", "val", "test")])
    for other in splits[1:]:
        for (x, y), (other_x, other_y) in zip(splits[0], other, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)
    assert len(list(tmp_path.glob(f"{kind.__name__}-*"))) == 2


def test_existing_data_is_not_downloaded(sets):
    MNIST("anywhere").prepare_data()
    assert sets["downloads"] == []


def test_missing_data_is_downloaded(sets):
    sets.update(exists=False, error=None)
    CIFAR10("anywhere").prepare_data()
    assert sets["downloads"] == [("CIFAR10", True)]


@pytest.mark.parametrize(
    "error", [URLError("no network"), RuntimeError("Error downloading train-images"), PermissionError("denied")]
)
@pytest.mark.parametrize("kind", [MNIST, CIFAR10])
def test_missing_data_without_a_network_is_a_one_line_error_with_the_folder(kind, error, sets, tmp_path):
    sets.update(exists=False, error=error)
    with pytest.raises(UserError) as caught:
        kind(str(tmp_path / "no data")).prepare_data()
    message = str(caught.value)
    assert str(tmp_path / "no data") in message
    assert "--data.root" in message
    assert "\n" not in message


def test_setup_without_data_is_a_one_line_error_with_the_folder(sets, tmp_path):
    sets.update(exists=False)
    with pytest.raises(UserError) as caught:
        FashionMNIST(str(tmp_path)).setup("fit")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_has_balanced_classes(shared_data):
    if not (shared_data / "FashionMNIST").is_dir():
        pytest.skip(f"no FashionMNIST in {shared_data}")
    data = FashionMNIST(str(shared_data))
    assert [data.load_split(train)[1].bincount().tolist() for train in (True, False)] == [[6000] * 10, [1000] * 10]
