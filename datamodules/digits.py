"""Handwritten digits that are included in scikit-learn, without a download."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.datamodules.augment import Augment, BatchTransform
from zoo.datamodules.base import InMemoryDataModule

TEST_SIZE = 297


class Digits(InMemoryDataModule):
    """1,797 grey images of handwritten digits, 8x8 pixels, included in scikit-learn.

    The test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI), by 13 writers. A fixed
    random selection of 297 images is the test split; `val_size` of the other 1,500 are for validation.

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
        from sklearn.datasets import load_digits

        data = load_digits()
        x = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        y = torch.from_numpy(data.target).long()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1998))
        index = order[TEST_SIZE:] if train else order[:TEST_SIZE]
        return x[index], y[index]
