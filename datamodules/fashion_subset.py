"""A part of Fashion-MNIST that is included in the package, without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.datamodules.augment import Augment, BatchTransform
from zoo.datamodules.base import InMemoryDataModule
from zoo.datamodules.device_cache import CacheMode
from zoo.datamodules.torchvision_sets import FashionMNIST

FILE = Path(__file__).with_name("fashion_mnist.npz")  # fashion_mnist.txt has its source and its license


class FashionMNISTSubset(InMemoryDataModule):
    """14,000 grey images of clothes, 28x28 pixels, included in the package: a fifth of Fashion-MNIST.

    1,200 images of each class from the training split and 200 from the test split of Fashion-MNIST (Xiao et al. 2017,
    arXiv 1708.07747, MIT license), chosen at random. `val_size` of the 12,000 training images are for validation.
    Published figures are measured on all 10,000 test images, which `FashionMNIST` has: those measured here are others.

    Args:
        batch_size: see `InMemoryDataModule`, as for the other arguments.
    """

    input_shape = FashionMNIST.input_shape
    num_classes = FashionMNIST.num_classes
    class_names = FashionMNIST.class_names
    background = FashionMNIST.background

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 2000,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        augment: Augment | BatchTransform | None = None,
        cache: CacheMode = "auto",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, repeats, drop_last, seed, augment, cache)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        split = "train" if train else "test"
        with np.load(FILE, allow_pickle=False) as file:
            x, y = torch.from_numpy(file[f"{split}_images"]), torch.from_numpy(file[f"{split}_labels"])
        return x.unsqueeze(1), y.long()
