"""The included clothes against the whole of Fashion-MNIST."""

import hashlib

import pytest
import torch

from zoo.datamodules import FashionMNIST, FashionMNISTSubset


def test_both_splits_are_the_pixels_that_were_measured_on():
    """The figures in docs/results were measured on these bits."""
    digest = hashlib.sha256()
    for train, size in ((True, 12_000), (False, 2_000)):
        x, y = FashionMNISTSubset().load_split(train)
        assert (tuple(x.shape), x.dtype, y.dtype) == ((size, 1, 28, 28), torch.uint8, torch.int64)
        assert y.bincount().tolist() == [size // 10] * 10
        digest.update(x.numpy().tobytes())
        digest.update(y.numpy().tobytes())
    assert digest.hexdigest() == "12cae826bb4d74410e627c2a8da6c5285584f9328e0c1322d496ad57fe146159"


def test_its_images_are_in_the_same_split_of_fashion_mnist_with_the_same_labels(shared_data):
    if not (shared_data / "FashionMNIST").is_dir():
        pytest.skip(f"no FashionMNIST in {shared_data}")
    for train in (True, False):
        images, labels = FashionMNIST(str(shared_data)).load_split(train)
        whole = {image.numpy().tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
        x, y = FashionMNISTSubset().load_split(train)
        assert [whole.get(image.numpy().tobytes()) for image in x] == y.tolist()
        assert len({image.numpy().tobytes() for image in x}) == len(x), "each once"
