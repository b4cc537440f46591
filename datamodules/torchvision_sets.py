"""Benchmark datasets of torchvision, downloaded on first use."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.datamodules.augment import Augment, BatchTransform
from zoo.datamodules.base import InMemoryDataModule
from zoo.datamodules.device_cache import CacheMode
from zoo.datamodules.sources import Chunk, SplitSource, files_digest
from zoo.errors import UserError


class TorchvisionDataModule(InMemoryDataModule):
    """Base of the data modules for torchvision's datasets; a subclass names the dataset and its shapes.

    Args:
        root: path to the folder with the files, in torchvision's layout; missing files are downloaded to it.
        batch_size: see `InMemoryDataModule`, as for the other arguments.
    """

    #: Name of torchvision's class.
    torchvision_name: ClassVar[str]
    #: Folder of its files, below `root`.
    files: ClassVar[str]
    #: Numbers of training and test images.
    sizes: ClassVar[tuple[int, int]]

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 5000,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        augment: Augment | BatchTransform | None = None,
        cache: CacheMode = "auto",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, val_size, repeats, drop_last, seed, augment, cache=cache, cache_dir=cache_dir
        )
        self.root = root

    def prepare_data(self) -> None:
        for train in (True, False):
            try:
                self._open(train, download=False)
            except RuntimeError:
                self._download(train)
        super().prepare_data()

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            data = self._open(train, download=False)
        except RuntimeError as error:
            where = Path(self.root).resolve()
            raise UserError(f"{self.torchvision_name} is not in {where}: {_first_line(error)}") from error
        x = torch.as_tensor(data.data)
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        return x.contiguous(), torch.as_tensor(data.targets).long()

    def split_source(self, train: bool) -> SplitSource:
        def content() -> dict[str, Any]:
            folder = Path(self.root) / self.files
            files = sorted(path for path in folder.glob("*") if path.is_file())
            root = str(folder.resolve())
            return {"class": type(self).__name__, "root": root, "train": train, "files": files_digest(files, folder)}

        count = self.sizes[0 if train else 1]
        # One chunk: torchvision reads the whole split.
        return SplitSource(
            self.split_name(train), self.input_shape, count, content, lambda: [Chunk(*self.load_split(train))]
        )

    def _download(self, train: bool) -> None:
        root, name = Path(self.root), self.torchvision_name
        missing = [folder for folder in (root / name / "raw", root / name, root) if not folder.exists()]
        try:
            self._open(train, download=True)
        except (OSError, RuntimeError) as error:
            for folder in missing:  # created by torchvision before the download failed
                _remove_if_empty(folder)
            raise UserError(
                f"{self.torchvision_name} is not in {Path(self.root).resolve()} and could not be downloaded "
                f"({_first_line(error)}); point root (--data.root) to a folder with the dataset in torchvision's layout"
            ) from error

    def _open(self, train: bool, download: bool) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision_name)(self.root, train=train, download=download)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or does not exist
        folder.rmdir()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


class MNIST(TorchvisionDataModule):
    """70,000 grey images of handwritten digits, 28x28 pixels (LeCun et al. 1998)."""

    torchvision_name, files, sizes = "MNIST", "MNIST/raw", (60_000, 10_000)
    background = "black"
    input_shape = (1, 28, 28)
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    mirror_symmetric = False


class FashionMNIST(TorchvisionDataModule):
    """70,000 grey images of clothes, 28x28 pixels (Xiao et al. 2017, arXiv 1708.07747)."""

    torchvision_name, files, sizes = "FashionMNIST", "FashionMNIST/raw", (60_000, 10_000)
    background = "black"
    input_shape = (1, 28, 28)
    num_classes = 10
    class_names = (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip


class CIFAR10(TorchvisionDataModule):
    """60,000 color photographs of animals and vehicles, 32x32 pixels (Krizhevsky 2009)."""

    torchvision_name, files, sizes = "CIFAR10", "cifar-10-batches-py", (50_000, 10_000)
    input_shape = (3, 32, 32)
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
