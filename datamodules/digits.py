"""Handwritten digits that are included in the package, without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.datamodules.augment import Augment, BatchTransform
from zoo.datamodules.base import InMemoryDataModule

TEST_SIZE = 297
FILE = Path(__file__).with_name("digits.npz")  # digits.txt has its source and its license


class Digits(InMemoryDataModule):
    """1,797 grey images of handwritten digits, 8x8 pixels, included in the package.

    The test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI, doi 10.24432/C50P49, CC
    BY 4.0), by 13 writers, as in scikit-learn. A fixed random selection of 297 images is the test split; `val_size` of
    the other 1,500 are for validation.

    Args:
        batch_size: see `InMemoryDataModule`, as for the other arguments.
    """

    input_shape = (1, 8, 8)
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    mirror_symmetric = False
    background = "black"

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 300,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        augment: Augment | BatchTransform | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, repeats, drop_last, seed, augment)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        with np.load(FILE, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
        x = images.double().mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        y = labels.long()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1998))
        index = order[TEST_SIZE:] if train else order[:TEST_SIZE]
        return x[index], y[index]
