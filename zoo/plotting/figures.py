"""Figures of matplotlib, outside pyplot's global state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.plotting.images import RGBImage

#: Colors that people with any common color vision tell apart (Okabe and Ito 2008, "Color Universal Design").
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARGINS = {"left": 0.75, "right": 0.15, "bottom": 0.5, "top": 0.35}  # inches around each panel of a fast figure


def new_figure(panels: int, size: float = 3.2, columns: int = 3, fast: bool = False) -> tuple[Any, list[Any]]:
    """Creates a figure.

    Args:
        panels: number of panels.
        size: height of a panel, in inches at 100 dots each.
        columns: most panels in a row.
        fast: fixed margins, for a title, one line of labels and numbers of a few digits, instead of margins that fit
            whatever is drawn, for which matplotlib lays out all text several times.

    Returns:
        The figure and its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    width, height = size * 1.3 * columns if panels > 1 else size, size * rows
    figure = Figure(figsize=(width, height), layout=None if fast else "constrained")
    FigureCanvasAgg(figure)
    if fast:
        left, right, bottom, top = MARGINS.values()
        across, down = left + right, bottom + top
        figure.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            bottom=bottom / height,
            top=1 - top / height,
            wspace=across / (width / columns - across),
            hspace=down / (height / rows - down),
        )
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def render_figure(figure: Any) -> RGBImage:
    """The figure's pixels, (height, width, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
