"""Positional encodings of a Transformer: the paper's sinusoids, and rotary embeddings.

Plain torch. Shapes: N sequences of T positions, H heads of C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

PosEncoding = Literal["rotary", "sinusoidal"]
POS_ENCODINGS = ("rotary", "sinusoidal")


def frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """Angular frequencies 10000^(-2i / width) for i = 0 to width / 2 - 1, in radians per position."""
    return 10_000.0 ** (-torch.arange(0, width, 2, device=device).float() / width)


def _angles(positions: Tensor, width: int) -> Tensor:
    """Angles (T, width / 2) at positions (T,), float32."""
    return torch.outer(positions.float(), frequencies(width, positions.device))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal encoding (Vaswani et al. 2017, section 3.5) of positions (T,), (T, width): sines, then cosines."""
    angles = _angles(positions, width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotation(positions: Tensor, width: int) -> Tensor:
    """Factors of the rotary embedding at positions (T,), (2, T, width), see `rotate`: cosines, and sines with sign."""
    angles = _angles(positions, width)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


def encode_range(
    encode: Callable[[Tensor, int], Tensor], start: int, length: int, width: int, device: torch.device
) -> Tensor:
    """Encoding of the positions from `start` on, (..., length, width), from a table that is kept on the device.

    Args:
        encode: `sinusoids` or `rotation`.
        start: first position.
        length: number of positions.
        width: number of channels.
        device: device of the result.
    """
    if torch.compiler.is_compiling():  # a part of the graph, which may have any length
        return encode(torch.arange(start, start + length, device=device), width)
    rows = 1 << (start + length - 1).bit_length()  # so that a sequence that grows needs few tables
    return _table(encode, rows, width, device)[..., start : start + length, :]


@lru_cache(maxsize=16)
def _table(encode: Callable[[Tensor, int], Tensor], rows: int, width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a table first used in validation is also used in training
        return encode(torch.arange(rows, device=device), width)


def grid_sinusoids(rows: int, columns: int, width: int) -> Tensor:
    """Sinusoidal encoding of the positions in a grid, (rows * columns, width): half of the channels for each axis.

    Args:
        rows: number of rows.
        columns: number of columns.
        width: number of channels, a multiple of 4.
    """
    of_rows, of_columns = (sinusoids(torch.arange(side), width // 2) for side in (rows, columns))
    return torch.cat([of_rows.repeat_interleave(columns, dim=0), of_columns.repeat(rows, 1)], dim=1)


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864, eq. 34): rotates each pair of channels by its angle.

    The products of rotated queries and keys depend only on the distance of their positions.

    Args:
        x: queries or keys, (N, H, T, C).
        factors: `rotation` of the positions, (2, T, C), in the dtype of x; channel i is paired with channel i + C / 2.
    """
    cos, sin = factors.unbind()
    return x * cos + torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1) * sin
