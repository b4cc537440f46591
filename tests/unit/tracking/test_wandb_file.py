"""The file of a Weights & Biases run; `test_loggers` reads one that Weights & Biases has written."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.tracking.wandb_file import BLOCK, FIRST, FULL, HEADER, LAST, records

MIDDLE = 3


def in_leveldb_format(bodies: list[bytes]) -> bytes:
    """A file with these records, without checksums."""
    data = bytearray(b":W&B\0\0\0")
    for body in bodies:
        first = True
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < HEADER:
                data += bytes(left)
                continue
            part, body = body[: left - HEADER], body[left - HEADER :]
            kind = (FULL if first else LAST) if not body else (FIRST if first else MIDDLE)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not body:
                break
    return bytes(data)


@given(st.lists(st.integers(0, 70_000), max_size=5), st.integers(0, 200_000), st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_records_are_read_back_also_from_a_file_that_was_cut_off_and_read_on(sizes, cut, junk):
    bodies = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    data = in_leveldb_format(bodies)
    cut = max(HEADER, cut)
    before = list(records(data[HEADER:cut]))
    end = before[-1][1] if before else HEADER
    assert [body for body, _ in [*before, *records(data[end:], end)]] == bodies
    list(records(data[HEADER:cut] + junk))  # no error
