"""Figures of matplotlib, outside pyplot's global state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.plotting.images import RGBImage


def new_figure(panels: int, size: float = 3.2, columns: int = 3) -> tuple[Any, list[Any]]:
    """Creates a figure.

    Args:
        panels: number of panels.
        size: height of a panel, in inches at 100 dots each.
        columns: most panels in a row.

    Returns:
        The figure and its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(size * 1.3 * columns if panels > 1 else size, size * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def render_figure(figure: Any) -> RGBImage:
    """The figure's pixels, (height, width, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
