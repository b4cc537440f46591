"""Arrays in memory-mapped files on disk: built once, verified when opened, shared by all processes of a machine.

A cache is a folder with one file of raw values per array and a `header.json`. It is written under another name and
renamed when it is complete and flushed to disk, so that what a killed process leaves is never taken for whole. Its name
contains a hash of what determines its content; a header that does not fit (another format or content, wrong sizes or
checksums) means that it is built anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from zoo.datamodules.memory import available_memory, in_words
from zoo.errors import UserError

#: Version of the files' layout; a cache of another one is built anew.
FORMAT = 3
HEADER = "header.json"
PARTIAL = ".partial"
CHECKED_BLOCKS = 256  # blocks of a file in its checksum, evenly spaced; reading all would take as long as an epoch
BLOCK = 4096  # bytes
DTYPES = frozenset({"uint8", "uint16", "int32", "int64"})  # of arrays; plain numbers only
MANY_BYTES = 10**8  # from this size on, building is reported


@dataclass(frozen=True)
class Cache:
    """An opened cache.

    Attributes:
        arrays: memory-mapped tensors by name. Read-only: writing into one ends the process.
        meta: plain values that were stored with them.
    """

    arrays: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class CacheKey:
    """Name of a cache.

    Args:
        folder: folder of the caches.
        name: what is in it, in words, for messages.
        content: plain values on which its arrays depend.
        size: expected number of bytes; 0 if it is not known.
    """

    folder: Path
    name: str
    content: Mapping[str, Any]
    size: int = 0

    @property
    def path(self) -> Path:
        """Folder of this cache."""
        digest = hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{self.content.get('class', 'data')}-{digest}"


class DamagedCacheError(Exception):
    """A folder that is not a whole cache of this format. The message is the reason, in words."""


@dataclass
class CacheWriter:
    """Writes the arrays of a cache, each to a file of its own.

    Args:
        folder: folder of the files.
        about: plain values that say in the header what the cache was built from, for people.
        meta: plain values that are stored in the header, for programs.
    """

    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    _files: dict[str, IO[bytes]] = field(default_factory=dict)
    _arrays: dict[str, dict[str, Any]] = field(default_factory=dict)

    def append(self, name: str, rows: np.ndarray) -> None:
        """Appends rows (n, ...) to an array; dtype and shape of the rows are those of the first call."""
        if name not in self._arrays:
            self._arrays[name] = {"dtype": rows.dtype.name, "shape": [0, *rows.shape[1:]]}
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
        entry = self._arrays[name]
        if entry["dtype"] != rows.dtype.name or entry["shape"][1:] != list(rows.shape[1:]):
            raise ValueError(f"{name}: {rows.dtype.name} {rows.shape[1:]} is appended to {entry}")
        self._files[name].write(np.ascontiguousarray(rows).data)
        entry["shape"][0] += len(rows)

    def finish(self) -> None:
        """Flushes the files to disk and writes the header."""
        for name, file in self._files.items():
            _flush(file)
            file.close()
            self._arrays[name]["crc32"] = _checksum(self.folder / f"{name}.bin")
        content = {"about": self.about, "arrays": self._arrays, "meta": self.meta}
        with (self.folder / HEADER).open("w", encoding="utf-8") as header:
            json.dump({"format": FORMAT, "crc32": _checksum_of(content), **content}, header)
            _flush(header)

    def close(self) -> None:
        """Closes the files, whatever state they are in."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk fails again on what is still buffered
                file.close()


def default_folder() -> Path:
    """Folder of the caches: $ZOO_CACHE, else `lightning-zoo` in $XDG_CACHE_HOME or in ~/.cache."""
    if named := os.environ.get("ZOO_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning-zoo"


def open_or_build(key: CacheKey, build: Callable[[CacheWriter], None]) -> Cache:
    """Opens a cache; builds it first if it is not there, or damaged.

    Processes that need the same cache wait for the one that builds it. Where files cannot be locked, all of them build,
    and the first to be done wins.

    Args:
        key: name of the cache.
        build: function that writes the arrays.

    Raises:
        UserError: the folder cannot be written, or its disk is full.
    """
    if (cache := _try_open(key)) is not None:
        return cache
    with _explained(key):
        key.folder.mkdir(parents=True, exist_ok=True)
        lock_file = (key.folder / f".{key.path.name}.lock").open("ab")
    with lock_file, _locked(lock_file, key) as locked:
        # Another process may have built it while this one waited.
        if (cache := _try_open(key, explain=True)) is None:
            if locked:  # what is left by a process that was killed; with the lock, no one else is building
                _remove_partial(key)
            _build(key, build)
            cache = open_cache(key.path, key.content)
    return cache


def exists(key: CacheKey) -> bool:
    """Whether there is a whole cache of this name."""
    return _try_open(key) is not None


def open_cache(path: Path, content: Mapping[str, Any] | None = None) -> Cache:
    """Opens a cache and verifies its header, sizes and checksums.

    Args:
        path: folder of the cache.
        content: what it must have been built from; None for anything.

    Raises:
        DamagedCacheError: it is not whole, or has another format.
    """
    try:
        if (path / HEADER).exists() and not (path / HEADER).is_file():
            raise DamagedCacheError(f"{HEADER} is not a file")
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise DamagedCacheError(f"it has format {header['format']}, this version reads {FORMAT}")
        if header["crc32"] != _checksum_of({name: header[name] for name in ("about", "arrays", "meta")}):
            raise DamagedCacheError("its header has another checksum than it says")
        if content is not None and not _plain(content).items() <= header["about"].items():
            raise DamagedCacheError("it was built from something else")
        arrays = {name: _map(path / f"{name}.bin", entry) for name, entry in header["arrays"].items()}
        return Cache(arrays, header["meta"])
    except OSError as error:
        raise DamagedCacheError(f"{Path(error.filename or path).name} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCacheError("its header is damaged") from error


def _map(path: Path, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise DamagedCacheError(f"{path.name} has the dtype {entry['dtype']}")
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    expected, size = dtype.itemsize * math.prod(shape), path.stat().st_size
    if size != expected:
        raise DamagedCacheError(f"{path.name} has {size} bytes, not {expected}")
    if _checksum(path) != entry["crc32"]:
        raise DamagedCacheError(f"{path.name} has another checksum than its header says")
    if not size:
        return torch.from_numpy(np.empty(shape, dtype))
    # Read-only: a private writable map counts against the memory that the system promises, and is refused if it is
    # larger than that.
    array = np.memmap(path, dtype, mode="r", shape=shape)
    # The system reads ahead, which fills its page cache ten times faster. What is larger than the memory does not stay
    # there, and reading ahead would multiply what is read from disk for every batch of random rows.
    available = available_memory()
    if hasattr(mmap, "MADV_RANDOM") and available is not None and size > available:
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _checksum(path: Path) -> int:
    """CRC-32 of evenly spaced blocks of a file, the first and the last among them."""
    size, crc = path.stat().st_size, 0
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, size - BLOCK), min(CHECKED_BLOCKS, size // BLOCK + 1), dtype=np.int64):
            file.seek(int(start))
            crc = zlib.crc32(file.read(BLOCK), crc)
    return crc


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come out of JSON, in which a tuple becomes a list."""
    return json.loads(json.dumps(values))


def _checksum_of(values: Mapping[str, Any]) -> int:
    """CRC-32 of plain values."""
    return zlib.crc32(json.dumps(_plain(values), sort_keys=True).encode())


def _try_open(key: CacheKey, explain: bool = False) -> Cache | None:
    if not key.path.exists():
        return None
    try:
        return open_cache(key.path, key.content)
    except DamagedCacheError as reason:
        if explain:
            rank_zero_warn(f"the cache of the {key.name} in {key.path} is built anew: {reason}")
        return None


def _build(key: CacheKey, build: Callable[[CacheWriter], None]) -> None:
    """Builds a cache under another name, and renames it."""
    start = time.monotonic()
    with _explained(key):
        free = shutil.disk_usage(key.folder).free
        if key.size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        partial = Path(tempfile.mkdtemp(prefix=f".{key.path.name}.", suffix=PARTIAL, dir=key.folder))
    writer = _ExplainingWriter(partial, {"name": key.name, **key.content}, key=key)
    try:
        build(writer)
        writer.finish()
        with _explained(key):
            _publish(partial, key)
    except BaseException:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if key.size >= MANY_BYTES:
        seconds = time.monotonic() - start
        rank_zero_info(f"the {key.name} is cached in {key.path} ({in_words(key.size)}, {seconds:.0f} s)")


@dataclass
class _ExplainingWriter(CacheWriter):
    """Turns errors of the cache's own files, and only those, into a `UserError`."""

    key: CacheKey = field(kw_only=True)

    def append(self, name: str, rows: np.ndarray) -> None:
        with _explained(self.key):
            super().append(name, rows)

    def finish(self) -> None:
        with _explained(self.key):
            super().finish()


def _publish(partial: Path, key: CacheKey) -> None:
    """Renames a complete folder; what was there is replaced if it is damaged, and kept if it is whole."""
    path = key.path
    partial.chmod(0o755)  # mkdtemp's folders are private; a cache can be shared
    try:
        partial.rename(path)
    except OSError:
        if not os.path.lexists(path):
            raise
        with suppress(DamagedCacheError):
            open_cache(path, key.content)  # another process was faster
            shutil.rmtree(partial)
            return
        aside = partial.with_name(f"{partial.name}.damaged{PARTIAL}")
        path.rename(aside)  # processes that have mapped it keep their maps
        partial.rename(path)
        _remove(aside)


def _remove_partial(key: CacheKey) -> None:
    for path in key.folder.glob(f".{key.path.name}.*{PARTIAL}"):
        _remove(path)


def _remove(path: Path) -> None:
    """Removes a folder, or what lies where a folder belongs."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _locked(file: IO[bytes], key: CacheKey) -> Iterator[bool]:
    """Waits for an exclusive lock on a file; yields False where files cannot be locked.

    The operating system releases the lock when the process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        rank_zero_info(f"waiting for another process, which builds the cache of the {key.name}")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        yield False
        return
    yield True


@contextmanager
def _explained(key: CacheKey) -> Iterator[None]:
    """Turns an error of the disk into a `UserError`."""
    try:
        yield
    except OSError as error:
        needs = f", {in_words(key.size)}," if key.size else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free = f" ({in_words(shutil.disk_usage(key.folder).free)} free)" if full and key.folder.exists() else ""
        reason = f"the disk is full{free}" if full else error.strerror or str(error)
        raise UserError(
            f"the cache of the {key.name}{needs} cannot be written to {key.folder}: {reason}; "
            "point cache_dir (or ZOO_CACHE) to another folder, or use cache memory"
        ) from error


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
