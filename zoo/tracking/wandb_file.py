"""The file of a Weights & Biases run: which of the rows that were logged are on the disk.

Weights & Biases writes what is logged in a process of its own, later, and a kill loses what has not been written yet.
The file has records in LevelDB's log format (https://github.com/google/leveldb/blob/main/doc/log_format.md), each of
them a protobuf message.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

#: Metric that numbers the rows of a run, from 1.
ROW = "trainer/row"
BLOCK = 32 * 1024
HEADER = 7  # bytes; of the file: ":W&B", a magic number, a version; of a record: checksum (4), length (2), kind (1)
FULL, FIRST, LAST = 1, 2, 4  # kinds of records: whole ones, and the ends of one that is split over blocks


class WandbFile:
    """A .wandb file that is read on as it grows.

    Args:
        path: path to the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = HEADER
        self._last_row = 0

    def last_row(self) -> int:
        """Number of the last row in the file; 0 if there is none."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        for record, end in records(data, self._position):
            self._position, self._last_row = end, max(self._last_row, _row(record))
        return self._last_row


def rows_on_disk(folder: Path, run_id: str) -> int:
    """Number of the last row of a run, over all of its starts.

    Args:
        folder: folder of Weights & Biases.
        run_id: id of the run.
    """
    return max((WandbFile(path).last_row() for path in folder.glob(f"*run-*-{run_id}/*.wandb")), default=0)


def records(data: bytes, start: int = HEADER) -> Iterator[tuple[bytes, int]]:
    """Complete records, and the positions in the file at which they end.

    Args:
        data: bytes of the file from `start` on.
        start: position in the file at which a record starts.
    """
    position, parts = start, b""
    while position + HEADER <= start + len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position - start)
        if kind == 0:  # padding
            position += left
            continue
        body = data[position - start + HEADER : position - start + HEADER + length]
        if len(body) < length:
            return  # it is being written, or was cut off
        position += HEADER + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts, position


def _row(data: bytes) -> int:
    """Number of a row; 0 for another record."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # generated when it is imported

    record = Record()
    try:
        record.ParseFromString(data)
    except DecodeError:
        return 0
    items = record.history.item
    return next((int(json.loads(i.value_json)) for i in items if (i.key or i.nested_key[-1]).endswith(ROW)), 0)
