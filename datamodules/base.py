"""Base of the data modules: one copy of the samples in memory, whole-batch indexing, normalization on the device.

The contract with the models: a batch is `(x, y)`; after the transfer to the device, images `x` are floats in [-1, 1],
(N, *input_shape), and labels `y` are int64 (N,). `input_shape`, `num_classes` and `class_names` are known before
`setup()`, so that a model can be built from them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.datamodules.augment import Augment
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.loading import training_loader
from zoo.errors import UserError, check_at_least


class TensorBatches(Dataset[tuple[Tensor, Tensor]]):
    """A dataset in memory that returns a whole batch by one indexing operation.

    A DataLoader with `collate_fn=identity_collate` calls `__getitems__` once per batch, so samplers, DDP and resuming
    work as Lightning expects, without the cost of collating sample by sample.

    Args:
        x: samples, (N, ...), any dtype.
        y: labels, int64 (N,).
        repeats: number of passes over the samples in one epoch.
    """

    def __init__(self, x: Tensor, y: Tensor, repeats: int = 1) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} samples but {len(y)} labels")
        self.x, self.y, self.repeats = x, y, repeats

    def __len__(self) -> int:
        return len(self.x) * self.repeats

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index %= len(self.x)
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        if self.repeats > 1:
            index %= len(self.x)
        return self.x[index], self.y[index]


def identity_collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Collate function for datasets that return whole batches, such as `TensorBatches`."""
    return batch


def to_unit_range(x: Tensor) -> Tensor:
    """Converts uint8 in [0, 255] to float32 in [-1, 1]; floats are returned unchanged."""
    return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x


class InMemoryDataModule(LightningDataModule):
    """Base of the data modules: train, validation and test splits held in memory.

    A subclass sets `input_shape`, `num_classes` and `class_names` (known before `setup()`) and implements
    `load_split`. The validation split is drawn from the training split by `seed`; the test split is read only by `test`
    and `predict`.

    Args:
        batch_size: samples per training batch, on each device.
        eval_batch_size: samples per validation, test or prediction batch.
        val_size: number of training samples held out for validation; a value below 1 is a fraction.
        repeats: number of passes over the training samples in one epoch, to reduce the fixed cost of short epochs.
        drop_last: drop the last training batch if it is smaller than the others.
        seed: random seed of the split into training and validation samples.
        augment: augmentation of the training images, applied to whole batches on the device.
    """

    #: Whether a sample is a sequence of tokens, not an image or a point.
    tokens: bool = False
    #: Whether the mirror image of a sample has the same class.
    mirror_symmetric: bool = True
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: Sequence[str]

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 0.1,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, repeats=repeats)
        if val_size <= 0:
            raise UserError(f"val_size is {val_size}; give a number of samples, or a fraction between 0 and 1")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.repeats = repeats
        self.drop_last = drop_last
        self.seed = seed
        self.augment = augment
        if augment is not None and augment.flip and not self.mirror_symmetric:
            rank_zero_info(f"{type(self).__name__} is not mirrored: its classes are not mirror-symmetric")
            self.augment = replace(augment, flip=False)
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads the training split, validation samples included, or the test split.

        Args:
            train: read the training split.

        Returns:
            Samples (N, *input_shape), images as uint8, and labels int64 (N,).
        """

    def setup(self, stage: str | None = None) -> None:
        if self.augment is not None:
            self.augment.check(self.input_shape)
        if stage in (None, "fit", "validate", "test") and "train" not in self._splits:
            x, y = self._load(train=True)
            count = round(self.val_size * len(x)) if self.val_size < 1 else int(self.val_size)
            if not 0 < count < len(x):
                raise UserError(
                    f"val_size {self.val_size} holds out {count} of {len(x)} training samples; "
                    "both splits need at least one sample"
                )
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
            for name, index in {"val": order[:count], "train": order[count:]}.items():
                self._splits[name] = (x[index], y[index])
        if stage in (None, "test", "predict") and "test" not in self._splits:
            self._splits["test"] = self._load(train=False)

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads a split, and checks it against the declared shape and number of classes."""
        x, y = self.load_split(train)
        name = f"the {'training' if train else 'test'} split of {type(self).__name__}"
        if not len(x) or len(x) != len(y):
            raise UserError(
                f"{name} has {len(x)} samples and {len(y)} labels; it needs the same number of both, at least one"
            )
        if tuple(x.shape[1:]) != tuple(self.input_shape):
            raise UserError(f"{name} has samples of the shape {tuple(x.shape[1:])}, not {tuple(self.input_shape)}")
        low, high = y.min().item(), y.max().item()
        if y.dtype.is_floating_point or low < 0 or high >= self.num_classes:
            raise UserError(
                f"{name} has labels from {low} to {high}; they must be integers from 0 to {self.num_classes - 1}"
            )
        return x, y

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Samples, images as floats in [-1, 1], and labels of the split "train", "val" or "test"."""
        x, y = self._splits[name]
        return to_unit_range(x), y

    def labels(self, name: str) -> Tensor:
        """Labels of the split "train", "val" or "test", int64 (N,)."""
        return self._splits[name][1]

    def reference(self, n: int) -> Tensor:
        """Random training samples, for calibration and for the floors of metrics; reproducible by `seed`.

        Args:
            n: maximum number of samples.

        Returns:
            Floats (n, *input_shape), or all samples if there are fewer.
        """
        return to_unit_range(self._splits["train"][0][:n])

    def train_dataloader(self) -> DataLoader[Any]:
        x, y = self._splits["train"]
        dataset = TensorBatches(x, y, self.repeats)
        if self.drop_last and len(dataset) < self.batch_size:
            raise UserError(
                f"batch_size {self.batch_size} is larger than the training set of {len(dataset)}, so there would be no "
                f"batch; use a batch_size of at most {len(dataset)}, or drop_last false"
            )
        return training_loader(dataset, self.batch_size, self.drop_last, identity_collate, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        return evaluation_loader(
            TensorBatches(*self._splits["val"]), self.eval_batch_size, identity_collate, self.trainer
        )

    def test_dataloader(self) -> DataLoader[Any]:
        return evaluation_loader(
            TensorBatches(*self._splits["test"]), self.eval_batch_size, identity_collate, self.trainer
        )

    predict_dataloader = test_dataloader

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        x, y = batch
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            x = self.augment(x)
        return to_unit_range(x), y
