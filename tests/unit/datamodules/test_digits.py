"""The digits against scikit-learn's."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from zoo.datamodules import Digits


def test_the_splits_have_each_digit_once_in_its_16_shades():
    data = Digits()
    (train_x, train_y), (test_x, test_y) = data.load_split(train=True), data.load_split(train=False)
    assert (len(train_x), len(test_x)) == (1500, 297)
    assert train_x.dtype == torch.uint8
    shades = torch.cat([train_x, test_x]).flatten(1).double() * 16 / 255
    labels = torch.cat([train_y, test_y]).unsqueeze(1)
    mine = set(map(tuple, torch.cat([shades.round().int(), labels], dim=1).tolist()))
    source = load_digits()
    theirs = set(map(tuple, np.column_stack([source.data, source.target]).astype(int).tolist()))
    assert mine == theirs
    assert len(mine) == 1797  # no duplicates


def test_full_ink_is_1_and_no_ink_minus_1():
    data = Digits()
    data.setup("fit")
    x, _ = data.split("train")
    assert x.min() == -1
    assert x.max() == 1
