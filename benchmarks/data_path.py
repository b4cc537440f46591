"""Speed of the zoo's data modules, compared with a torchvision dataset in a DataLoader with worker processes.

Both return shuffled training batches of augmented images (random crop after padding, random flip), normalized to
[-1, 1]. The zoo holds uint8 images in memory, cuts whole batches by index, and augments and normalizes them at once.
The torchvision dataset makes each sample a PIL image and applies RandomCrop, RandomHorizontalFlip, ToTensor and
Normalize in persistent workers, by default one per core. The two take turns after a warm-up round; medians of images
per second are printed. Usage:

    python -m benchmarks.data_path
    python -m benchmarks.data_path --root data
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.output import new_parser, report
from zoo.datamodules import CIFAR10, Augment, FashionMNIST, InMemoryDataModule

Epoch = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Case:
    """A dataset: its shape (C, H, W), the padding that is usual for it, in pixels, and its data module."""

    name: str
    shape: tuple[int, int, int]
    padding: int
    data_module: Callable[..., Any]


CASES = (Case("FashionMNIST", (1, 28, 28), 2, FashionMNIST), Case("CIFAR10", (3, 32, 32), 4, CIFAR10))


class GivenImages(InMemoryDataModule):
    """Data module of the zoo on given images, uint8 (N, C, H, W), and labels (N,)."""

    num_classes, class_names = 10, tuple("0123456789")

    def __init__(self, x: Tensor, y: Tensor, **options: Any) -> None:
        super().__init__(val_size=1, **options)
        self.input_shape = tuple(x.shape[1:])
        self._given = (x, y)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        return self._given


class PILDataset(Dataset[tuple[Any, int]]):
    """The same images one by one, as torchvision's datasets return them."""

    def __init__(self, x: Tensor, y: Tensor, transform: Callable[[Any], Tensor]) -> None:
        grey = x.shape[1] == 1
        self.arrays = (x.squeeze(1) if grey else x.permute(0, 2, 3, 1)).contiguous().numpy()
        self.labels = y.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def load_images(case: Case, root: str | None, count: int) -> tuple[Tensor, Tensor, str]:
    """Images, uint8 (N, C, H, W), labels (N,), and their source: the dataset if it is in `root`, else "random"."""
    if root is not None and (Path(root) / {"CIFAR10": "cifar-10-batches-py"}.get(case.name, case.name)).is_dir():
        x, y = case.data_module(root).load_split(train=True)
        return x[:count], y[:count], case.name
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, *case.shape), dtype=torch.uint8, generator=generator)
    return x, torch.randint(10, (count,), generator=generator), "random"


def zoo_epoch(x: Tensor, y: Tensor, padding: int, batch_size: int) -> Epoch:
    """Epoch of the zoo's data module, augmented and normalized."""
    data = GivenImages(x, y, batch_size=batch_size, augment=Augment(crop=padding, flip=True))
    data.setup("fit")
    loader = data.train_dataloader()
    data.trainer = SimpleNamespace(training=True, precision_plugin=Precision())  # type: ignore[assignment]
    return lambda: (data.on_after_batch_transfer(batch, 0) for batch in loader)


def torchvision_epoch(x: Tensor, y: Tensor, padding: int, batch_size: int, workers: int) -> Epoch:
    """Epoch of the torchvision pipeline."""
    channels, size = x.shape[1], x.shape[2:]
    half = (0.5,) * channels
    steps = [transforms.RandomCrop(size, padding=padding), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(half, half)]
    loader: DataLoader[Any] = DataLoader(
        PILDataset(x, y, transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: loader


def images_per_second(epoch: Epoch, seconds: float) -> float:
    """Speed over as many whole epochs as take at least `seconds`."""
    seen, start = 0, time.perf_counter()
    while True:
        for x, _ in epoch():
            assert x.dtype == torch.float32
            seen += len(x)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return seen / elapsed


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Median speeds of both pipelines in images per second, and their ratio."""
    x, y, source = load_images(case, options.root, options.images)
    epochs = {
        "zoo": zoo_epoch(x, y, case.padding, options.batch_size),
        "torchvision": torchvision_epoch(x, y, case.padding, options.batch_size, options.workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(options.rounds + 1):
        for name, epoch in epochs.items():
            rate = images_per_second(epoch, options.seconds)
            if number:
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = sorted(a / b for a, b in zip(rates["zoo"], rates["torchvision"], strict=True))
    return {
        "images": source,
        "zoo": round(medians["zoo"]),
        "torchvision": round(medians["torchvision"]),
        "ratio": round(medians["zoo"] / medians["torchvision"], 1),
        "ratio_range": [round(ratios[0], 1), round(ratios[-1], 1)],
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--root", help="folder of Fashion-MNIST and CIFAR-10; random images replace a missing dataset")
    parser.add_argument("--images", type=int, default=25_600, help="images per epoch")
    parser.add_argument("--batch_size", type=int, default=128, help="images per batch")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes of the DataLoader")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=1.0, help="minimum length of a round")
    options = parser.parse_args(args)
    threads = f"{torch.get_num_threads()} threads of torch {torch.__version__}"
    print(f"{os.cpu_count()} cores, {threads}, {options.workers} workers")
    for case in CASES:
        report("x".join(map(str, case.shape)), **measure(case, options))


if __name__ == "__main__":
    main()
