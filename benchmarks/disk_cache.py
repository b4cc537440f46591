"""Speed and memory of a data module whose samples lie in a memory-mapped file, compared with samples in memory.

Synthetic grey images of 64x64 pixels come in chunks from a random number generator, and are written by the code that
builds every cache. Each mode trains nothing: it reads shuffled training batches, normalized to [-1, 1].

- time: from the first chunk to an opened cache, flushed to disk; and decoding PNG files, of which there are fewer.
- memory: growth of the resident memory by an epoch of each mode; private, and pages of the file, which the system takes
  back when memory is short.
- speed: the modes take turns after a warm-up round; medians of images per second are printed.
- cold: speed after the file's pages were dropped from the page cache: of the first epoch, in which the system reads
  ahead, as for a file that fits into memory; and of random reads, as for one that does not.

Usage:

    python -m benchmarks.disk_cache
    python -m benchmarks.disk_cache --images 100000 --channels 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

from benchmarks.output import new_parser, report
from zoo.datamodules import ImageFolder, InMemoryDataModule
from zoo.datamodules.device_cache import CacheMode
from zoo.datamodules.sources import Chunk, SplitSource

CHUNK = 1000  # images


class SyntheticImages(InMemoryDataModule):
    """Random images, made in chunks."""

    num_classes, class_names = 10, tuple("0123456789")

    def __init__(self, count: int, channels: int, size: int, batch_size: int, cache: CacheMode, cache_dir: str) -> None:
        super().__init__(batch_size, val_size=1, cache=cache, cache_dir=cache_dir)
        self.count = count
        self.input_shape = (channels, size, size)

    def split_source(self, train: bool) -> SplitSource:
        def chunks() -> Iterator[Chunk]:
            generator = torch.Generator().manual_seed(0)
            for start in range(0, self.count, CHUNK):
                n = min(CHUNK, self.count - start)
                x = torch.randint(256, (n, *self.input_shape), dtype=torch.uint8, generator=generator)
                yield Chunk(x, torch.randint(10, (n,), generator=generator))

        content = {"class": "SyntheticImages", "count": self.count}
        return SplitSource(self.split_name(train), self.input_shape, self.count, lambda: content, chunks)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        return self.split_source(train).read()


def data_module(options: argparse.Namespace, cache: CacheMode, folder: str) -> SyntheticImages:
    """The data module after its setup."""
    data = SyntheticImages(options.images, options.channels, options.size, options.batch_size, cache, folder)
    data.setup("fit")
    return data


def batches(data: SyntheticImages) -> Iterator[Tensor]:
    """An epoch of images as floats."""
    for batch in data.train_dataloader():
        yield data.on_after_batch_transfer(batch, 0)[0]


def images_per_second(data: SyntheticImages, seconds: float) -> float:
    """Speed over as many batches as take at least `seconds`, from the beginning of an epoch."""
    seen, start = 0, time.perf_counter()
    while True:
        for x in batches(data):
            seen += len(x)
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return seen / elapsed


def drop_pages(folder: str) -> bool:
    """Drops the cache's files from the page cache; False where the system cannot. No process may have mapped them."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in Path(folder).glob("*/*.bin"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def measure_cold(options: argparse.Namespace, folder: str) -> dict[str, int]:
    """Speed of the first epoch after the file's pages were dropped, and of random reads without reading ahead."""
    rates = {}
    for mode, available in {"first_epoch": None, "random_reads": 0}.items():
        if drop_pages(folder):
            with mock.patch("zoo.datamodules.disk_cache.available_memory", lambda size=available: size):
                data = data_module(options, "disk", folder)
            start, seen = time.perf_counter(), 0
            for x in batches(data):
                seen += len(x)
                if mode == "random_reads" and time.perf_counter() - start > 10 * options.seconds:
                    break
            rates[mode] = round(seen / (time.perf_counter() - start))
            del data, x
    return rates


def resident() -> dict[str, float]:
    """Resident memory of this process in MB, private and of files; empty where the system does not say."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    names = {"RssAnon:": "private_MB", "RssFile:": "file_MB"}
    fields = [line.split() for line in lines if line.startswith(tuple(names))]
    return {names[name]: int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in fields}


def measure_memory(
    options: argparse.Namespace, cache: CacheMode, folder: str
) -> tuple[SyntheticImages, dict[str, Any]]:
    """A data module, and by how much the resident memory has grown after an epoch of it, in MB."""
    before = resident()
    data = data_module(options, cache, folder)
    for _ in batches(data):
        pass
    return data, {name: round(value - before[name]) for name, value in resident().items()}


def measure_speed(data: dict[str, SyntheticImages], options: argparse.Namespace) -> dict[str, Any]:
    """Median speeds of the modes in images per second, in turn, and the ratio of disk to memory."""
    rates: dict[str, list[float]] = {cache: [] for cache in data}
    for number in range(options.rounds + 1):
        for cache, module in data.items():
            rate = images_per_second(module, options.seconds)
            if number:
                rates[cache].append(rate)
    ratios = sorted(a / b for a, b in zip(rates["disk"], rates["memory"], strict=True))
    medians = {cache: round(statistics.median(values)) for cache, values in rates.items()}
    spread = [round(ratios[0], 2), round(ratios[-1], 2)]
    return {**medians, "ratio": round(statistics.median(ratios), 2), "ratio_range": spread}


def measure_decoding(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Speed of building the cache of an `ImageFolder` of PNG files."""
    pictures = folder / "pictures"
    pictures.mkdir()
    noise = torch.randint(256, (options.size, options.size), dtype=torch.uint8).numpy()
    for number in range(options.files):
        Image.fromarray(noise ^ (number % 256)).save(pictures / f"{number:07}.png", compress_level=1)
    start = time.perf_counter()
    data = ImageFolder(str(pictures), options.size, 1, test_size=1, cache="disk", cache_dir=str(folder / "decoded"))
    data.setup("fit")
    seconds = time.perf_counter() - start
    return {"files": options.files, "seconds": round(seconds, 1), "files_per_s": round(options.files / seconds)}


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, help="images in the training split")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--channels", type=int, default=1, help="channels")
    parser.add_argument("--batch_size", type=int, default=128, help="images per batch")
    parser.add_argument("--files", type=int, default=20_000, help="PNG files that are decoded")
    parser.add_argument("--rounds", type=int, default=41, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round")
    options = parser.parse_args(args)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "caches")
        start = time.perf_counter()
        data_module(options, "disk", folder)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).glob("*/*.bin"))
        report("build", seconds=seconds, MB=size / 1e6)
        report("decoding", **measure_decoding(options, Path(name)))
        report("cold", **measure_cold(options, folder))
        data = {}
        for cache in ("memory", "disk"):
            data[cache], grown = measure_memory(options, cache, folder)
            report(cache, **grown)
        report("images a second", **measure_speed(data, options))


if __name__ == "__main__":
    main()
