"""Splits of a dataset as a stream of chunks, which are read into memory or written to a cache on disk.

Both ways read the same chunks, so the samples are the same, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.datamodules.disk_cache import Cache, CacheKey, CacheWriter, exists, open_or_build
from zoo.errors import UserError

SHOWN = 3  # names of skipped files in a message
MANY = 5000  # samples from which a progress bar is shown


class Chunk(NamedTuple):
    """Consecutive samples of a split.

    Attributes:
        x: samples, uint8 (n, *shape).
        y: labels, int64 (n,).
        skipped: samples that cannot be read, each with the reason, by their index in the split.
    """

    x: Tensor
    y: Tensor
    skipped: Mapping[int, str] = MappingProxyType({})


@dataclass
class _Skipped:
    """Samples that cannot be read: their indices, and the first of them with the reason."""

    indices: list[int] = field(default_factory=list)
    first: list[str] = field(default_factory=list)

    def add(self, samples: Mapping[int, str]) -> None:
        self.indices += samples
        self.first += list(samples.values())[: SHOWN - len(self.first)]

    def __str__(self) -> str:
        return list_some(self.first, len(self.indices))


@dataclass(frozen=True)
class SplitSource:
    """A split as a stream of chunks.

    Args:
        name: name of the split for messages, such as "training split of ImageFolder".
        shape: shape of a sample.
        count: number of samples, those included that cannot be read.
        content: function that returns the plain values on which the samples depend, for the name of a cache; "class"
            is the beginning of that name.
        chunks: function that returns the chunks, in order.
        skipped: set to which reading adds the indices of the samples that cannot be read.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    content: Callable[[], Mapping[str, Any]]
    chunks: Callable[[], Iterable[Chunk]]
    skipped: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Number of bytes of the samples."""
        return self.count * torch.Size(self.shape).numel()

    def read(self) -> tuple[Tensor, Tensor]:
        """Reads all samples into memory.

        Returns:
            Samples, uint8 (N, *shape), and labels, int64 (N,).

        Raises:
            UserError: none of the samples can be read.
        """
        x, y = torch.empty(self.count, *self.shape, dtype=torch.uint8), torch.empty(self.count, dtype=torch.int64)
        filled, skipped = 0, _Skipped()
        for chunk in self._with_progress_bar("reading"):
            end = filled + len(chunk.x)
            x[filled:end], y[filled:end] = chunk.x, chunk.y
            filled = end
            skipped.add(chunk.skipped)
        self._check_read(filled, skipped)
        return x[:filled], y[:filled]

    def key(self, folder: Path) -> CacheKey:
        """Name of the split's cache in a folder."""
        return CacheKey(folder, self.name, {**self.content(), "shape": list(self.shape)}, self.size)

    def is_cached(self, folder: Path) -> bool:
        """Whether the folder has a whole cache of the split."""
        return exists(self.key(folder))

    def cache(self, folder: Path) -> Cache:
        """Opens the split's cache; builds it first if it is not there.

        Raises:
            UserError: the cache cannot be written, or none of the samples can be read.
        """
        return open_or_build(self.key(folder), self._write)

    def read_cached(self, folder: Path) -> tuple[Tensor, Tensor]:
        """Like `read`, but the samples stay on disk, in a memory-mapped file; it is built if it is not there."""
        cache = self.cache(folder)
        x, y = cache.arrays["samples"], cache.arrays["labels"]
        self._check_read(len(x), _Skipped(list(cache.meta["skipped"]), list(cache.meta["first_skipped"])))
        return x, y

    def _write(self, writer: CacheWriter) -> None:
        skipped, count = _Skipped(), 0
        for chunk in self._with_progress_bar("caching"):
            writer.append("samples", chunk.x.numpy())
            writer.append("labels", chunk.y.numpy())
            skipped.add(chunk.skipped)
            count += len(chunk.x)
        if not count:
            self._check_read(count, skipped)
        writer.meta.update(skipped=skipped.indices, first_skipped=skipped.first)

    def _check_read(self, count: int, skipped: _Skipped) -> None:
        bad = len(skipped.indices)
        total = count + bad
        if bad and not count:
            raise UserError(f"none of the {total} images of the {self.name} can be read: {skipped}")
        if bad:
            rank_zero_warn(f"{bad} of {total} images cannot be read and are skipped: {skipped}")
        self.skipped.update(skipped.indices)

    def _with_progress_bar(self, verb: str) -> Iterator[Chunk]:
        with progress_bar(f"{verb} the {self.name}", self.count) as advance:
            for chunk in self.chunks():
                yield chunk
                advance(len(chunk.x) + len(chunk.skipped))


@contextmanager
def progress_bar(words: str, total: int, many: int = MANY) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal that disappears at the end; yields the function that advances it.

    Args:
        words: what is done.
        total: number of steps.
        many: number of steps from which a bar is shown.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    hidden = total < many or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(words, total=total)
        yield lambda steps: bar.advance(task, steps)


def files_digest(files: Iterable[Path], root: Path) -> str:
    """Hash of paths below `root`, sizes and modification times; a file changed without either is not noticed."""
    digest = hashlib.sha256()
    for path in files:
        entry = path.stat()
        line = f"{path.relative_to(root).as_posix()}\0{entry.st_size}\0{entry.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def list_some(items: Sequence[str], total: int | None = None) -> str:
    """The first items in words, and the number of the others."""
    more = (len(items) if total is None else total) - len(items[:SHOWN])
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more else "")
