"""Pictures in a page: files as data URIs, and a selection of them that fits a budget of bytes."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 3 * 2**20  # bytes of one picture


class Picture(NamedTuple):
    """A picture that is part of the page.

    Attributes:
        uri: data URI.
        width: width in pixels.
        height: height in pixels.
    """

    uri: str
    width: int
    height: int


def read_picture(path: Path) -> Picture | None:
    """Reads a PNG file; None for anything else, and for one that is too large to be mailed."""
    if path.stat().st_size > LARGEST:
        return None
    data = path.read_bytes()
    if len(data) < 24 or not data.startswith(SIGNATURE):
        return None
    width, height = struct.unpack(">II", data[16:24])  # of the header IHDR, which is always the first chunk
    return Picture(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height)


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Files in a run's folder by a pattern, in order of their names; a link that leads out of the folder is none."""
    inside = folder.resolve()
    found = sorted(folder.glob(pattern))
    return [path for path in found if path.is_file() and path.resolve().is_relative_to(inside)]


def check_inside(folder: Path, name: str) -> Path:
    """Path of a file in a run's folder, which need not exist.

    Raises:
        ValueError: it is a link that leads out of the folder, and what it leads to is not to be mailed with the report.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it is a link that leads out of the folder")
    return path


def step_of(path: Path) -> int | None:
    """Optimizer step in the name of a file of samples, `step_0000500.png`; None for other files."""
    found = re.fullmatch(r"step_(\d{1,12})", path.stem)
    return int(found[1]) if found else None


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices of `count` things, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / max(1, most - 1)) for index in range(most)})


def within_budget(paths: Sequence[Path], most: int, budget: int) -> list[Path]:
    """Files evenly spaced, with the first and the last, whose sizes add up to a number of bytes at most.

    Two files are kept whatever their sizes are.

    Args:
        paths: files in order.
        most: number of files at most.
        budget: bytes.
    """
    while True:
        chosen = [paths[index] for index in spread(len(paths), most)]
        if most <= 2 or sum(path.stat().st_size for path in chosen) <= budget:
            return chosen
        most -= 1
