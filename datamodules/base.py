"""Base of the data modules: one copy of the samples, whole-batch indexing, normalization on the device.

The samples lie in memory, or in a memory-mapped file on disk, whose pages the system reads when they are needed. Where
a GPU trains and has room, batches are cut from a copy of them there.

The contract with the models: a batch is `(x, y)`; after the transfer to the device, `x` are floats in the trainer's
precision, images in [-1, 1], (N, *input_shape), and labels `y` are int64 (N,). `input_shape`, `num_classes` and
`class_names` are known before `setup()`, so that a model can be built from them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.datamodules.augment import Augment, BatchTransform, apply
from zoo.datamodules.device_cache import CacheMode, DeviceCopies, check_device
from zoo.datamodules.disk_cache import default_folder
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.loading import training_loader
from zoo.datamodules.memory import check_fits, exceeds_memory
from zoo.datamodules.sources import SplitSource
from zoo.errors import UserError, check_at_least, check_choice, check_seed
from zoo.pictures.decoding import Fit, parse_color


class TensorBatches(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of tensors that returns a whole batch by one indexing operation.

    The tensors lie in memory, memory-mapped, or all on one device, where the batch is then too.

    A DataLoader with `collate_fn=identity_collate` calls `__getitems__` once per batch, so samplers, DDP and resuming
    work as Lightning expects, without the cost of collating sample by sample.

    Args:
        x: samples, (N, ...), any dtype.
        y: labels, int64 (N,).
        repeats: number of passes over the samples in one epoch.
        index: samples that belong to this dataset, in order, int64 (n,); None for all. They are not copied.
    """

    def __init__(self, x: Tensor, y: Tensor, repeats: int = 1, index: Tensor | None = None) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} samples but {len(y)} labels")
        self.x, self.y, self.repeats, self.index = x, y, repeats, index

    @property
    def samples(self) -> int:
        """Number of different samples."""
        return len(self.x) if self.index is None else len(self.index)

    @property
    def device(self) -> torch.device:
        """Device of the samples and of the batches."""
        return self.x.device

    def __len__(self) -> int:
        return self.samples * self.repeats

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        if self.repeats > 1:
            index = index % self.samples
        index = index.to(self.device, non_blocking=True)
        if self.index is not None:
            index = self.index[index]
        return self.x[index], self.y[index]

    def first(self, n: int) -> tuple[Tensor, Tensor]:
        """The first `n` samples, or all if there are fewer, and their labels."""
        if self.index is None:
            return self.x[:n], self.y[:n]
        return self.x[self.index[:n]], self.y[self.index[:n]]


def identity_collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Collate function for datasets that return whole batches, such as `TensorBatches`."""
    return batch


def to_unit_range(x: Tensor) -> Tensor:
    """Converts uint8 in [0, 255] to float32 in [-1, 1]; floats are returned unchanged."""
    return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x


class InMemoryDataModule(LightningDataModule):
    """Base of the data modules: train, validation and test splits as tensors, in memory or mapped from disk.

    A subclass sets `input_shape`, `num_classes` and `class_names` (known before `setup()`) and implements
    `load_split`; with `split_source` too, its samples can be cached on disk. The validation split is drawn from the
    training split by `seed`; the test split is read only by `test` and `predict`.

    Args:
        batch_size: samples per training batch, on each device.
        eval_batch_size: samples per validation, test or prediction batch.
        val_size: number of training samples held out for validation; a value below 1 is a fraction.
        repeats: number of passes over the training samples in one epoch, to reduce the fixed cost of short epochs.
        drop_last: drop the last training batch if it is smaller than the others.
        seed: random seed of the split into training and validation samples.
        augment: augmentation of the training images, applied to whole batches on the device: `Augment`, or any callable
            that takes and returns images, uint8 (N, C, H, W), such as a transform of `torchvision.transforms.v2`.
        cache: where the decoded samples lie: "memory"; "disk", in a memory-mapped file that is built once; "device", on
            the training device too, where batches are then cut; "auto", on disk if they would take more than half of
            the available memory, and on a CUDA device too if they take at most a quarter of its free memory. The
            batches are the same.
        cache_dir: folder of the files on disk; by default $ZOO_CACHE, or `lightning-zoo` in the user's cache folder.
    """

    #: Whether a sample is a sequence of tokens, not an image or a point.
    tokens: bool = False
    #: Whether the mirror image of a sample has the same class.
    mirror_symmetric: bool = True
    #: How an image of another shape is brought to `input_shape`, see `pictures.prepare_image`.
    fit: Fit = "crop"
    #: Color below transparent pixels of such an image.
    background: str = "white"
    #: Split that `predict` reads.
    predict_split: str = "test"
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
        augment: Augment | BatchTransform | None = None,
        cache: CacheMode = "auto",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("cache", cache, get_args(CacheMode))
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, repeats=repeats)
        if not 0 < val_size < math.inf:
            raise UserError(f"val_size is {val_size}; give a number of samples, or a fraction between 0 and 1")
        check_seed(seed=seed)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.repeats = repeats
        self.drop_last = drop_last
        self.seed = seed
        self.cache = cache
        self.cache_dir = cache_dir
        self.augment = augment
        if augment is not None and not callable(augment):
            raise UserError(f"augment is {augment!r}; it must be callable on batches of images")
        if isinstance(augment, Augment) and augment.flip and not self.mirror_symmetric:
            rank_zero_info(f"{type(self).__name__} is not mirrored: its classes are not mirror-symmetric")
            self.augment = replace(augment, flip=False)
        self._splits: dict[str, TensorBatches] = {}
        self._copies = DeviceCopies()

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """Plain values by which any picture is brought to the model's input; None if the samples are not images.

        `size` (height and width in pixels), `channels`, `fit` and `background` (red, green and blue, 0 to 255) are the
        arguments of `zoo.pictures.decoding.prepare_image`; `range` are the values of black and white.
        """
        if self.tokens or len(self.input_shape) != 3:
            return None
        channels, *size = self.input_shape
        return {
            "size": size,
            "channels": channels,
            "fit": self.fit,
            "background": list(parse_color(self.background)),
            "range": [-1.0, 1.0],
        }

    @abstractmethod
    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads the training split, validation samples included, or the test split.

        Args:
            train: read the training split.

        Returns:
            Samples (N, *input_shape), images as uint8, and labels int64 (N,).
        """

    def split_source(self, train: bool) -> SplitSource | None:
        """The same samples as a stream of chunks, from which a cache on disk is built; None if there is none.

        Args:
            train: training split, validation samples included, or the test split.
        """
        return None

    def prepare_data(self) -> None:
        """Builds the caches on disk that the Trainer needs; called in one process of each machine."""
        for train in self._needed(self.trainer.state.fn if self.trainer is not None else None):
            if (source := self._source_on_disk(train)) is not None:
                source.cache(self.cache_folder)

    def setup(self, stage: str | None = None) -> None:
        check_device(self.cache, self.trainer)
        if callable(check := getattr(self.augment, "check", None)):
            check(self.input_shape)
        for train in self._needed(stage):
            if ("train" if train else "test") in self._splits:
                continue
            x, y = self._load(train)
            if not train:
                self._splits["test"] = TensorBatches(x, y)
                continue
            count = round(self.val_size * len(x)) if self.val_size < 1 else int(self.val_size)
            if not 0 < count < len(x):
                raise UserError(
                    f"val_size {self.val_size} holds out {count} of {len(x)} training samples; "
                    "both splits need at least one sample"
                )
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
            self._splits["val"] = TensorBatches(x, y, index=order[:count])
            self._splits["train"] = TensorBatches(x, y, self.repeats, order[count:])

    def teardown(self, stage: str | None = None) -> None:
        self._copies.clear()

    @staticmethod
    def _needed(stage: str | None) -> list[bool]:
        """Splits that a stage reads, as arguments of `load_split`; all if the stage is None."""
        train, test = ("fit", "validate", "test"), ("test", "predict")
        return [split for split, stages in ((True, train), (False, test)) if stage is None or stage in stages]

    @property
    def cache_folder(self) -> Path:
        """Folder of the caches on disk."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else default_folder()

    def _source_on_disk(self, train: bool) -> SplitSource | None:
        """The source of a split whose samples lie on disk; None if they lie in memory."""
        source = self.split_source(train) if self.cache != "memory" else None
        if source is None:
            if self.cache == "disk":
                raise UserError(
                    f"{type(self).__name__} has no cache on disk, as it has no split_source; use cache memory"
                )
            return None
        processes, rank = (self.trainer.num_devices, self.trainer.local_rank) if self.trainer is not None else (1, 0)
        if self.cache == "disk":
            return source
        if rank:  # rank 0 has decided, when none of them had taken memory yet
            return source if source.is_cached(self.cache_folder) else None
        return source if exceeds_memory(processes * source.size) else None

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads or maps a split, and checks it."""
        source = self._source_on_disk(train)
        x, y = source.read_cached(self.cache_folder) if source is not None else self.load_split(train)
        self.check_split(train, x, y)
        return x, y

    def split_name(self, train: bool) -> str:
        """Name of a split for messages."""
        return f"{'training' if train else 'test'} split of {type(self).__name__}"

    def check_split(self, train: bool, x: Tensor, y: Tensor) -> None:
        """Checks a split against the declared shape and number of classes.

        Args:
            train: whether it is the training split.
            x: samples, (N, *input_shape).
            y: labels, int64 (N,).

        Raises:
            UserError: it has no samples, or other shapes or labels.
        """
        name = f"the {self.split_name(train)}"
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

    def dataset(self, name: str) -> TensorBatches:
        """The split "train", "val" or "test" as a dataset of samples as they are stored, images as uint8.

        Raises:
            UserError: it is not loaded, or there is no such split.
        """
        check_choice("split", name, ("train", "val", "test"))
        if name not in self._splits:
            stage = "test" if name == "test" else "fit"
            raise UserError(
                f'the {name} split of {type(self).__name__} is not loaded: call prepare_data() and setup("{stage}") '
                "first, as a Trainer does"
            )
        return self._splits[name]

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Samples, images as floats in [-1, 1], and labels of the split "train", "val" or "test".

        Raises:
            UserError: the floats would not fit into the available memory. `reference(n)` and the dataloaders have no
                such limit.
        """
        dataset = self.dataset(name)
        values = dataset.samples * torch.Size(self.input_shape).numel()
        size = values * (4 if dataset.x.dtype == torch.uint8 else dataset.x.element_size())
        check_fits(
            size,
            f"the {name} split of {type(self).__name__} as floats",
            "read reference(n), or leave out what needs all samples at once (the ideal denoiser of a diffusion model: "
            "excess_samples 0)",
        )
        x, y = dataset.first(dataset.samples)
        return to_unit_range(x), y

    def labels(self, name: str) -> Tensor:
        """Labels of the split "train", "val" or "test", int64 (N,)."""
        dataset = self.dataset(name)
        return dataset.y if dataset.index is None else dataset.y[dataset.index]

    def reference(self, n: int) -> Tensor:
        """Random training samples, for calibration and for the floors of metrics; reproducible by `seed`.

        Only these samples are read.

        Args:
            n: maximum number of samples.

        Returns:
            Floats (n, *input_shape), or all samples if there are fewer.
        """
        return to_unit_range(self.dataset("train").first(n)[0])

    def training_samples(self, n: int, *, labels: Tensor | None = None, seed: int = 0) -> Tensor:
        """Random training samples, also by class, for the floors of metrics; only these samples are read.

        Args:
            n: number of samples.
            labels: class of each sample, int64 (n,); drawn without regard to classes by default.
            seed: random seed of the draw.

        Returns:
            Floats (n, *input_shape), each training sample at most once. With labels, samples of a class that has fewer
            than are asked for come several times, and one without any is replaced by samples of all classes; without,
            there are as many samples as the data has at most.
        """
        generator, of_samples = torch.Generator().manual_seed(seed), self.labels("train")
        if labels is None:
            index = torch.randperm(len(of_samples), generator=generator)[:n]
        else:
            index = torch.empty(n, dtype=torch.int64)
            for label in labels.unique().tolist():
                places, pool = (labels == label).nonzero().flatten(), (of_samples == label).nonzero().flatten()
                pool = pool if len(pool) else torch.arange(len(of_samples))
                order = pool[torch.randperm(len(pool), generator=generator)]
                index[places] = order[torch.arange(len(places)) % len(order)]
        return to_unit_range(self.dataset("train").__getitems__(index.tolist())[0])

    def _for_loader(self, name: str) -> TensorBatches:
        """A split as its loader reads it: on the training device, if `cache` has it there."""
        dataset = self.dataset(name)
        x, y = self._copies.place(
            (dataset.x, dataset.y), self.cache, self.trainer, f"the {self.split_name(name != 'test')}"
        )
        if x is dataset.x:
            return dataset
        return TensorBatches(x, y, dataset.repeats, None if dataset.index is None else dataset.index.to(x.device))

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._for_loader("train")
        if self.drop_last and len(dataset) < self.batch_size:
            raise UserError(
                f"batch_size {self.batch_size} is larger than the training set of {len(dataset)}, so there would be no "
                f"batch; use a batch_size of at most {len(dataset)}, or drop_last false"
            )
        return training_loader(dataset, self.batch_size, self.drop_last, identity_collate, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        return evaluation_loader(self._for_loader("val"), self.eval_batch_size, identity_collate, self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        return evaluation_loader(self._for_loader("test"), self.eval_batch_size, identity_collate, self.trainer)

    def predict_dataloader(self) -> DataLoader[Any]:
        dataset = self._for_loader(self.predict_split)
        place = f" in {root}" if (root := getattr(self, "root", None)) else ""
        things = "images" if len(self.input_shape) == 3 else "samples"
        split = f"{self.predict_split} split of {type(self).__name__}{place}"
        rank_zero_info(f"predicting the {split}: {dataset.samples:,} {things}")
        return evaluation_loader(dataset, self.eval_batch_size, identity_collate, self.trainer)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Lightning looks through whatever a batch may be, even if nothing is to be moved.
        if isinstance(batch, tuple) and all(isinstance(part, Tensor) and part.device == device for part in batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        x, y = batch
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            x = apply(self.augment, x)
        x = to_unit_range(x)
        return x if self.trainer is None else self.trainer.precision_plugin.convert_input(x), y
