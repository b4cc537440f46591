"""Plots of points in one or two dimensions."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage


def plot_points(
    points: Tensor, data: Tensor | None = None, size: float = 5.0, within: Tensor | None = None
) -> RGBImage:
    """Plots points: a histogram in one dimension, a scatter plot of the first two coordinates in more.

    Args:
        points: samples, (N, D).
        data: reference points, (M, D), drawn behind the samples.
        size: side of the square figure, in inches at 100 dots each.
        within: points (..., D) that set the limits of the axes; by default the data, else the samples.

    Returns:
        (height, width, 3).
    """
    figure, axes = new_figure(1, size)
    clouds = [(data, "0.75", "data")] if data is not None else []
    clouds.append((points, "tab:red", "samples"))
    low, high = _limits(next(x for x in (within, data, points) if x is not None))
    if points.shape[1] == 1:
        for cloud, color, label in clouds:
            values = cloud.detach().cpu().flatten().clamp(low, high).numpy()
            bins = np.linspace(low, high, 100)
            axes[0].hist(values, bins=bins, density=True, color=color, label=label, alpha=0.7)
    else:
        for cloud, color, label in clouds:
            xy = cloud.detach().cpu().numpy()
            axes[0].scatter(xy[:, 0], xy[:, 1], s=4, color=color, label=label, linewidths=0, alpha=0.6)
        axes[0].set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes[0].legend(loc="upper right")
    return render_figure(figure)


def _limits(x: Tensor) -> tuple[float, float]:
    low, high = x.min().item(), x.max().item()
    margin = 0.15 * (high - low) + 1e-3
    return low - margin, high + margin
