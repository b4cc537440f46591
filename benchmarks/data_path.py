"""Speed of the zoo's data path beside that of an ordinary torchvision dataset with worker processes.

Both hand out shuffled training batches of augmented images (a random crop after padding, mirror images), normalized to
[-1, 1]. The zoo's holds bytes in memory, cuts whole batches by index and augments and normalizes them at once; the
other one makes each sample a PIL image and sends it through RandomCrop, RandomHorizontalFlip, ToTensor and Normalize,
in as many workers as there are cores, which stay alive between epochs. The rounds take turns, after one that does not
count; what is printed are medians, of images per second. Run it as

    python benchmarks/data_path.py
    python benchmarks/data_path.py --root data
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from zoo.datamodules import CIFAR10, Augment, FashionMNIST, InMemoryDataModule


@dataclass(frozen=True)
class Case:
    """One kind of images, and the pixels of padding that are usual for it."""

    name: str
    shape: tuple[int, int, int]
    padding: int
    real: Callable[..., Any]


CASES = (Case("FashionMNIST", (1, 28, 28), 2, FashionMNIST), Case("CIFAR10", (3, 32, 32), 4, CIFAR10))


class InMemory(InMemoryDataModule):
    """The zoo's data module on given bytes."""

    num_classes, class_names = 10, tuple("0123456789")

    def __init__(self, x: Tensor, y: Tensor, **options: Any) -> None:
        super().__init__(val_size=1, **options)
        self.input_shape = tuple(x.shape[1:])
        self._given = (x, y)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        return self._given


class Pictures(Dataset[tuple[Any, int]]):
    """Sample by sample, as torchvision's own datasets hand out theirs."""

    def __init__(self, x: Tensor, y: Tensor, transform: Callable[[Any], Tensor]) -> None:
        grey = x.shape[1] == 1
        self.arrays = (x.squeeze(1) if grey else x.permute(0, 2, 3, 1)).contiguous().numpy()
        self.labels = y.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def images(case: Case, root: str | None, count: int) -> tuple[Tensor, Tensor, str]:
    """Bytes (N, C, H, W), labels (N,), and where they come from: the dataset in `root`, or nowhere."""
    if root is not None and (Path(root) / {"CIFAR10": "cifar-10-batches-py"}.get(case.name, case.name)).is_dir():
        x, y = case.real(root).load_split(train=True)
        return x[:count], y[:count], case.name
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, *case.shape), dtype=torch.uint8, generator=generator)
    return x, torch.randint(10, (count,), generator=generator), "random"


def zoo_batches(x: Tensor, y: Tensor, padding: int, batch_size: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Makes one epoch of the zoo's batches, ready for a model."""
    data = InMemory(x, y, batch_size=batch_size, augment=Augment(crop=padding, flip=True))
    data.setup("fit")
    data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    loader = data.train_dataloader()
    return lambda: (data.on_after_batch_transfer(batch, 0) for batch in loader)


def torchvision_batches(
    x: Tensor, y: Tensor, padding: int, batch_size: int, workers: int
) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Makes one epoch of batches in worker processes."""
    channels, size = x.shape[1], x.shape[2:]
    half = (0.5,) * channels
    steps = [transforms.RandomCrop(size, padding=padding), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(half, half)]
    loader: DataLoader[Any] = DataLoader(
        Pictures(x, y, transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: loader


def images_per_second(epoch: Callable[[], Iterable[tuple[Tensor, Tensor]]], seconds: float) -> float:
    """Over whole epochs, as many as it takes to fill the time."""
    seen, start = 0, time.perf_counter()
    while True:
        for x, _ in epoch():
            assert x.dtype == torch.float32
            seen += len(x)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return seen / elapsed


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Rates of both in turns, and how many times as fast the zoo's is."""
    x, y, source = images(case, args.root, args.images)
    ways = {
        "zoo": zoo_batches(x, y, case.padding, args.batch_size),
        "torchvision": torchvision_batches(x, y, case.padding, args.batch_size, args.workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, epoch in ways.items():
            rate = images_per_second(epoch, args.seconds)
            if number:
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = sorted(a / b for a, b in zip(rates["zoo"], rates["torchvision"], strict=True))
    return {
        "shape": list(case.shape),
        "images": source,
        "zoo": round(medians["zoo"]),
        "torchvision": round(medians["torchvision"]),
        "ratio": round(medians["zoo"] / medians["torchvision"], 1),
        "ratio_of_rounds": [round(ratios[0], 1), round(ratios[-1], 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", help="folder of FashionMNIST and CIFAR10; random images where they are not there")
    parser.add_argument("--images", type=int, default=25_600, help="samples in an epoch")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the torchvision path")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="shortest time of a round, of each")
    args = parser.parse_args()
    threads = f"{torch.get_num_threads()} threads of torch {torch.__version__}"
    print(f"{os.cpu_count()} cores, {threads}, {args.workers} workers")
    for case in CASES:
        print(json.dumps(measure(case, args)), flush=True)


if __name__ == "__main__":
    main()
