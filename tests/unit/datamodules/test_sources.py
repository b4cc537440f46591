"""Splits as streams of chunks: the same samples in memory and from disk."""

from __future__ import annotations

import os

import pytest
import torch

from zoo.datamodules.sources import Chunk, SplitSource, files_digest, list_some
from zoo.errors import UserError

X = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def source(skipped: int = 0, readable: int = 50) -> SplitSource:
    """Images in chunks of 7, of which some cannot be read."""

    def chunks():
        yield Chunk(X[:0], torch.zeros(0, dtype=torch.int64), {i: f"bad{i} (broken)" for i in range(skipped)})
        for start in range(0, readable, 7):
            yield Chunk(X[start : start + 7], torch.arange(start, min(start + 7, 50)))

    return SplitSource("training split", (1, 4, 4), readable + skipped, lambda: {"class": "Numbers"}, chunks)


@pytest.mark.parametrize("skipped", [0, 5])
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_memory_and_disk_have_the_same_samples_bit_for_bit(tmp_path, skipped):
    x, y = source(skipped).read()
    assert torch.equal(x, X)
    assert torch.equal(y, torch.arange(50))
    for _ in range(2):  # built, and opened
        mapped_x, mapped_y = source(skipped).read_cached(tmp_path)
        assert mapped_x.dtype == x.dtype and torch.equal(mapped_x, x)
        assert mapped_y.dtype == y.dtype and torch.equal(mapped_y, y)


def test_skipped_samples_are_named_also_when_the_cache_exists_already(tmp_path):
    for read in (source(5).read, *2 * [lambda: source(5).read_cached(tmp_path)]):
        with pytest.warns(UserWarning, match="cannot be read") as caught:
            read()
        (warning,) = caught
        message = (
            "5 of 55 images cannot be read and are skipped: bad0 (broken), bad1 (broken), bad2 (broken) and 2 more"
        )
        assert str(warning.message) == message


def test_nothing_is_cached_if_nothing_can_be_read(tmp_path):
    for read in (source(2, 0).read, lambda: source(2, 0).read_cached(tmp_path)):
        with pytest.raises(UserError, match=r"none of the 2 images of the training split can be read: bad0 \(broken\)"):
            read()
    assert not source(2, 0).is_cached(tmp_path)


def test_the_digest_of_files_depends_on_names_sizes_and_times(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    os.utime(path, ns=(0, 10**18))
    first = files_digest([path], tmp_path)
    assert files_digest([path], tmp_path) == first
    path.write_bytes(b"abd")  # the same size, another time
    changed = files_digest([path], tmp_path)
    os.utime(path, ns=(0, 10**18))
    assert files_digest([path], tmp_path) == first != changed
    path.write_bytes(b"abcd")
    os.utime(path, ns=(0, 10**18))
    assert files_digest([path], tmp_path) != first
    renamed = path.rename(tmp_path / "b.png")
    assert files_digest([renamed], tmp_path) != first


def test_lists_are_shortened():
    assert list_some(["a", "b", "c"]) == "a, b, c"
    assert list_some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert list_some(["a"], 4) == "a and 3 more"
