"""Positional encodings of a Transformer: the paper's sinusoids, and rotary embeddings.

Plain torch. Shapes: N sequences of T positions, H heads of C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PosEncoding = Literal["rotary", "sinusoidal"]
POS_ENCODINGS = ("rotary", "sinusoidal")


def frequencies(width: int) -> Tensor:
    """Angular frequencies 10000^(-2i / width) for i = 0 to width / 2 - 1, in radians per position."""
    return 10_000.0 ** (-torch.arange(0, width, 2).float() / width)


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal encoding (Vaswani et al. 2017, section 3.5), (length, width): sines, then cosines."""
    angles = torch.outer(torch.arange(length).float(), frequencies(width))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_sinusoids(rows: int, columns: int, width: int) -> Tensor:
    """Sinusoidal encoding of the positions in a grid, (rows * columns, width): half of the channels for each axis.

    Args:
        rows: number of rows.
        columns: number of columns.
        width: number of channels, a multiple of 4.
    """
    of_rows, of_columns = sinusoids(rows, width // 2), sinusoids(columns, width // 2)
    return torch.cat([of_rows.repeat_interleave(columns, dim=0), of_columns.repeat(rows, 1)], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864, eq. 34): rotates each pair of channels by its angle.

    The products of rotated queries and keys depend only on the distance of their positions.

    Args:
        x: queries or keys, (N, H, T, C).
        angles: angle of each pair at each position, (T, C / 2); channel i is paired with channel i + C / 2.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
