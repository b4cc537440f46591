"""The digits against scikit-learn's."""

import hashlib

import pytest
import torch

from zoo.datamodules import Digits
from zoo.datamodules.digits import TEST_SIZE


def test_both_splits_are_the_pixels_that_were_published_with():
    """The distances and accuracies in docs/results were measured on these bits."""
    digest = hashlib.sha256()
    for train, size in ((True, 1500), (False, 297)):
        x, y = Digits().load_split(train)
        assert (len(x), x.dtype, y.dtype) == (size, torch.uint8, torch.int64)
        digest.update(x.numpy().tobytes())
        digest.update(y.numpy().tobytes())
    assert digest.hexdigest() == "490e111e3eb047848c6954f0187d22491dd86e9e844c6db305073e4e482e2061"


def test_the_digits_are_those_of_scikit_learn_in_16_shades():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(1998))
    for train, index in ((True, order[TEST_SIZE:]), (False, order[:TEST_SIZE])):
        x, y = Digits().load_split(train)
        assert torch.equal(x[:, 0].double(), torch.from_numpy(source.images)[index].mul(255 / 16).round())
        assert torch.equal(y, torch.from_numpy(source.target).long()[index])


def test_full_ink_is_1_and_no_ink_minus_1():
    data = Digits()
    data.setup("fit")
    x, _ = data.split("train")
    assert x.min() == -1
    assert x.max() == 1
