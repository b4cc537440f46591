"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage

MOST_COUNTS = 100  # classes up to which a cell has room for its count
POINTS_PER_INCH = 72


def plot_confusion(counts: Tensor, names: Sequence[str], title: str = "") -> RGBImage:
    """Plots a confusion matrix: counts as numbers, shares of the true class as colors. Zeros are left blank.

    Args:
        counts: number of samples, int64 (C, C); rows are true classes, columns predicted ones.
        names: names of the C classes.
        title: title of the figure.
    """
    from matplotlib.colors import PowerNorm

    size = len(names)
    cell = min(max(50 / size / 2.5, 0.26), 0.7) if size <= MOST_COUNTS else 26 / size  # inches
    figure, (ax,) = new_figure(1)
    figure.set_size_inches(*(max(size * cell + 2.6, 4.5), max(size * cell + 1.6, 3.5)))
    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    # The square root makes a share of a few percent visible, which most mistakes have.
    picture = ax.imshow(shares.cpu().numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(picture, ax=ax, label="share of the true class", shrink=0.6, aspect=30)
    every = -(-size // MOST_COUNTS)
    font = min(9.0, 0.8 * cell * every * POINTS_PER_INCH)
    shown = [_shortened(name) for name in names[::every]]
    upright = size > 2 and max(map(len, shown)) * 0.6 * font > cell * every * POINTS_PER_INCH
    ax.set_xticks(range(0, size, every), shown, fontsize=font, rotation=90 if upright else 0, parse_math=False)
    ax.set_yticks(range(0, size, every), shown, fontsize=font, parse_math=False)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_title(title, fontsize="medium")
    if size <= MOST_COUNTS:
        _write_counts(ax, counts.cpu().numpy(), shares.cpu().numpy(), cell)
    return render_figure(figure)


def _shortened(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _write_counts(ax: Any, counts: np.ndarray[Any, Any], shares: np.ndarray[Any, Any], cell: float) -> None:
    """Writes the counts into their cells, in the largest size that fits the longest of them."""
    digits = len(str(counts.max()))
    font = min(10.0, 0.85 * cell * POINTS_PER_INCH / (0.64 * max(digits, 2)))
    for row, column in zip(*counts.nonzero(), strict=True):
        color = "white" if shares[row, column] > 0.3 else "black"
        text = ax.text(column, row, counts[row, column], ha="center", va="center", fontsize=font, color=color)
        text.set_in_layout(False)  # the layout would measure each of thousands
