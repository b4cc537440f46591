"""Bilinear resizing of batches by two matrix products, which every device computes, in every precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=16)
def _resizing_matrix(size: int, new: int) -> Tensor:
    """Matrix (new, size) that resizes a line of pixels, bilinearly, with the kernel widened against aliasing."""
    lines = torch.eye(size).view(1, 1, size, size)
    return F.interpolate(lines, (new, size), mode="bilinear", antialias=True).view(new, size)


def resize(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Resizes images (N, C, H, W) to (N, C, *sides), bilinearly with antialiasing."""
    rows, columns = (
        _resizing_matrix(size, new).to(x.device, x.dtype) for size, new in zip(x.shape[2:], sides, strict=True)
    )
    return rows @ x @ columns.T
