"""The cache on disk: built once, whole or not there, verified when it is opened."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.datamodules import disk_cache
from zoo.datamodules.disk_cache import (
    HEADER,
    CacheKey,
    CacheWriter,
    DamagedCacheError,
    default_folder,
    exists,
    open_cache,
    open_or_build,
)
from zoo.errors import UserError

ROWS = np.arange(3000 * 8, dtype=np.uint8).reshape(3000, 2, 4)
LABELS = np.arange(3000, dtype=np.int64)


@pytest.fixture
def key(tmp_path) -> CacheKey:
    return CacheKey(tmp_path / "caches", "training split of Numbers", {"class": "Numbers", "seed": 1}, ROWS.nbytes)


class Build:
    """Writes the arrays in two pieces, and counts how often it does."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, writer: CacheWriter) -> None:
        self.times += 1
        for part in (slice(0, 1000), slice(1000, None)):
            writer.append("samples", ROWS[part])
            writer.append("labels", LABELS[part])
        writer.meta["skipped"] = 3


def left(key: CacheKey) -> list[str]:
    """What lies in the folder of the caches, but for lock files."""
    return sorted(path.name for path in key.folder.iterdir() if path.suffix != ".lock")


def assert_whole(cache: disk_cache.Cache) -> None:
    assert torch.equal(cache.arrays["samples"], torch.from_numpy(ROWS))
    assert torch.equal(cache.arrays["labels"], torch.from_numpy(LABELS))
    assert cache.meta == {"skipped": 3}


def test_a_cache_is_built_once_and_holds_what_was_written(key):
    build = Build()
    assert not exists(key)
    for _ in range(3):
        assert_whole(open_or_build(key, build))
    assert build.times == 1
    assert exists(key)
    assert left(key) == [key.path.name]
    assert key.path.stat().st_mode & 0o777 == 0o755, "other users can read it"


def test_other_content_has_another_name(key):
    other = CacheKey(key.folder, key.name, {"class": "Numbers", "seed": 2})
    assert key.path != other.path
    assert key.path.name.startswith("Numbers-")
    same = CacheKey(key.folder, "another name", {"seed": 1, "class": "Numbers"})
    assert key.path == same.path, "neither the order nor the words matter"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("shape", [(0, 3), (5,), (2, 3, 4)])
def test_dtypes_and_shapes_are_kept(key, dtype, shape):
    rows = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    array = open_or_build(key, lambda writer: writer.append("samples", rows)).arrays["samples"]
    assert array.shape == shape
    assert np.array_equal(array.numpy(), rows)


# --- damage


def cut(path: Path) -> None:
    with (path / "samples.bin").open("r+b") as file:
        file.truncate(ROWS.nbytes - 1)


def lengthen(path: Path) -> None:
    with (path / "labels.bin").open("ab") as file:
        file.write(b"0")


def zero(path: Path) -> None:
    """As after a crash of the machine: the size is right, the content was never written."""
    (path / "samples.bin").write_bytes(bytes(ROWS.nbytes))


def change_header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Changes a header as whoever wrote it could have, with the checksum that belongs to it."""

    def changed(path: Path) -> None:
        header = json.loads((path / HEADER).read_text())
        change(header)
        header["crc32"] = disk_cache._checksum_of({name: header[name] for name in ("about", "arrays", "meta")})
        (path / HEADER).write_text(json.dumps(header))

    return changed


def pipe(path: Path) -> None:
    (path / HEADER).unlink()
    os.mkfifo(path / HEADER)


DAMAGES = {
    "truncated": (cut, "samples.bin has 23999 bytes, not 24000"),
    "too long": (lengthen, "labels.bin has 24001 bytes, not 24000"),
    "never written": (zero, "samples.bin has another checksum"),
    "a missing file": (lambda path: (path / "labels.bin").unlink(), "labels.bin cannot be read"),
    "a missing header": (lambda path: (path / HEADER).unlink(), "header.json cannot be read"),
    "half a header": (lambda path: (path / HEADER).write_text('{"format": 3, "arr'), "its header is damaged"),
    "an empty header": (lambda path: (path / HEADER).write_text("[]"), "its header is damaged"),
    "another format": (change_header(lambda header: header.update(format=0)), "it has format 0, this version reads 3"),
    "a header that is changed": (
        lambda path: (path / HEADER).write_text((path / HEADER).read_text().replace('"skipped": 3', '"skipped": 4')),
        "its header has another checksum",
    ),
    "a header without end": (lambda path: (path / HEADER).write_text("[" * 100_000), "its header is damaged"),
    "a pipe for a header": (pipe, "header.json is not a file"),
    "a cache of other data": (
        change_header(lambda header: header["about"].update(seed=2)),
        "it was built from something else",
    ),
    "a size beyond 64 bits": (
        change_header(lambda header: header["arrays"]["labels"].update(shape=[2**32, 2**32])),
        "labels.bin has 24000 bytes, not 147573952589676412928",
    ),
    "a size below nothing": (
        change_header(lambda header: header["arrays"]["labels"].update(shape=[-3000])),
        "labels.bin has 24000 bytes, not -24000",
    ),
    "objects": (
        change_header(lambda header: header["arrays"]["labels"].update(dtype="object")),
        "labels.bin has the dtype object",
    ),
    "a wrong shape": (
        change_header(lambda header: header["arrays"]["labels"].update(shape=[2999])),
        "labels.bin has 24000 bytes, not 23992",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cache_is_built_anew_with_one_line(key, name):
    damage, reason = DAMAGES[name]
    open_or_build(key, Build())
    damage(key.path)
    with pytest.raises(DamagedCacheError, match=reason):
        open_cache(key.path, key.content)
    assert not exists(key)
    build = Build()
    with pytest.warns(UserWarning, match=f"training split of Numbers in .* is built anew: {reason}") as caught:
        assert_whole(open_or_build(key, build))
    assert build.times == len(caught) == 1
    assert left(key) == [key.path.name]


def spoil(folder: Path, name: str, action: str, at: float, value: int) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    place = int(at * (len(content) - 1))
    path.unlink()
    if action == "flip":
        content[place] ^= value
        path.write_bytes(content)
    elif action == "cut":
        path.write_bytes(content[:place])
    elif action == "grow":
        path.write_bytes(content[:place] + bytes([value]) * value + content[place:])
    elif action == "zero":
        path.write_bytes(content[:place] + bytes(len(content) - place))
    elif action == "pipe":
        os.mkfifo(path)
    elif action == "folder":
        path.mkdir()
    elif action == "loop":
        path.symlink_to(path)
    elif action == "other":
        other = next(file for file in folder.iterdir())
        path.write_bytes(other.read_bytes())


ACTIONS = ("flip", "flip", "flip", "cut", "grow", "zero", "pipe", "folder", "loop", "other", "remove")


@settings(max_examples=int(os.environ.get("ZOO_FUZZ_EXAMPLES", 12)), deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(("samples.bin", "labels.bin", HEADER)),
    st.sampled_from(ACTIONS),
    st.floats(0, 1),
    st.integers(1, 255),
)
@pytest.mark.filterwarnings("ignore:the cache of the training split of Numbers .* is built anew")
def test_whatever_happens_to_a_cache_its_samples_are_right(name, action, at, value):
    with TemporaryDirectory() as folder:
        key = CacheKey(Path(folder), "training split of Numbers", {"class": "Numbers", "shape": (2, 4)})
        open_or_build(key, Build())
        spoil(key.path, name, action, at, value)
        assert_whole(open_or_build(key, Build()))
        assert left(key) == [key.path.name]


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])
@pytest.mark.filterwarnings("ignore:the cache of the training split of Numbers .* is built anew")
def test_what_lies_where_a_cache_belongs_is_replaced(key, make):
    key.folder.mkdir()
    make(key.path)
    assert_whole(open_or_build(key, Build()))
    assert left(key) == [key.path.name]


# --- interruptions


class Interrupted(Build):
    """Ends in the middle, in the way that is given."""

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__()
        self.end = end

    def __call__(self, writer: CacheWriter) -> None:
        writer.append("samples", ROWS[:1000])
        self.end()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process to kill it")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_what_a_killed_process_leaves_is_not_taken_for_whole_and_is_removed(key):
    process = multiprocessing.get_context("fork").Process(target=open_or_build, args=(key, Interrupted(kill)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (partial,) = left(key)
    assert partial.endswith(disk_cache.PARTIAL)
    assert not exists(key)
    assert_whole(open_or_build(key, Build()))
    assert left(key) == [key.path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken source"), OSError(errno.EIO, "a picture")])
def test_an_error_while_building_is_passed_on_and_leaves_nothing(key, error):
    def fail() -> None:
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        open_or_build(key, Interrupted(fail))
    assert left(key) == []


# --- several processes


def build_in_two_threads(key: CacheKey, build: Callable[[CacheWriter], None]) -> list[disk_cache.Cache]:
    caches = []
    threads = [threading.Thread(target=lambda: caches.append(open_or_build(key, build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return caches


def test_of_two_builders_one_builds_and_the_other_waits(key):
    entered = threading.Event()

    class Slow(Build):
        def __call__(self, writer):
            super().__call__(writer)
            entered.wait(0.3)  # time for the other one to come

    build = Slow()
    caches = build_in_two_threads(key, build)
    assert len(caches) == 2
    assert build.times == 1
    for cache in caches:
        assert_whole(cache)


def test_without_locks_two_build_and_the_first_wins(key, monkeypatch):
    @contextmanager
    def no_lock(file, key):
        yield False

    monkeypatch.setattr(disk_cache, "_locked", no_lock)
    both = threading.Barrier(2)

    class Together(Build):
        def __call__(self, writer):
            both.wait(60)
            super().__call__(writer)

    build = Together()
    caches = build_in_two_threads(key, build)
    assert build.times == len(caches) == 2
    for cache in caches:
        assert_whole(cache)
    assert left(key) == [key.path.name]


# --- the disk


def test_a_full_disk_is_one_line_with_the_way_out_and_leaves_nothing(key):
    class FullFile:
        """A file on a disk that is full."""

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.write(b"")  # what is still buffered

    def build(writer):
        writer.append("samples", ROWS[:1000])
        writer._files["samples"] = FullFile()
        writer.append("samples", ROWS[1000:])

    with pytest.raises(UserError, match=r"the disk is full \(.* free\); point cache_dir \(or ZOO_CACHE\)") as caught:
        open_or_build(key, build)
    message = str(caught.value)
    assert "\n" not in message
    assert f"the cache of the training split of Numbers, 24.0 kB, cannot be written to {key.folder}" in message
    assert left(key) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_read(key, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    build = Build()
    with pytest.raises(UserError, match=r"24\.0 kB, .* the disk is full \(1\.0 kB free\)"):
        open_or_build(key, build)
    assert build.times == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    key = CacheKey(tmp_path / "file" / "caches", "test split", {})
    with pytest.raises(UserError, match=r"the cache of the test split cannot be written to .*file/caches: Not a dir"):
        open_or_build(key, Build())


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", "~/mine")
    assert default_folder() == Path("~/mine").expanduser()
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lightning-zoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path("~/.cache/lightning-zoo").expanduser()
