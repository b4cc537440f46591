"""Generated samples, images or points, as one image or as the frames of an animation."""

from __future__ import annotations

import math

from PIL import Image
from torch import Tensor

from zoo.plotting.images import RGBImage, image_grid
from zoo.plotting.points import plot_points


def show(samples: Tensor, columns: int | None = None) -> Image.Image:
    """Renders samples as a picture, which a notebook shows by itself and `.save("samples.png")` writes.

    Args:
        samples: images (N, C, H, W) or one image (C, H, W), in [-1, 1]; or points (N, D).
        columns: images per row.
    """
    return Image.fromarray(render_samples(samples[None] if samples.ndim == 3 else samples, columns))


MAX_ASPECT = 16  # of the rows and columns of a grid with a column for each class


def class_columns(n: int, num_classes: int) -> int | None:
    """Columns of a grid of `n` samples that cycle through the classes, so that a column has one class.

    The grid is about square where there are few classes, which then have several columns each.

    Args:
        n: number of samples.
        num_classes: number of classes.

    Returns:
        A multiple of the number of classes; None if the grid would be long and narrow, for the usual square.
    """
    columns = num_classes * max(1, round(math.sqrt(n) / num_classes))
    return columns if columns <= n and columns**2 <= MAX_ASPECT * n else None


def render_samples(samples: Tensor, columns: int | None = None, data: Tensor | None = None) -> RGBImage:
    """Renders samples: a grid of images (N, C, H, W), or a plot of points (N, D).

    Args:
        samples: images in [-1, 1], or points.
        columns: images per row.
        data: reference points (M, D) drawn behind points.
    """
    return image_grid(samples, columns) if samples.ndim == 4 else plot_points(samples, data)


def render_frames(states: Tensor, columns: int | None = None) -> list[RGBImage]:
    """Renders each state of the samples, (frames, N, ...); points have the same axes in all frames."""
    if states.ndim == 5:
        return [image_grid(state, columns) for state in states]
    return [plot_points(state, within=states) for state in states]
