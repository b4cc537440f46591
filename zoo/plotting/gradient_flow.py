"""Gradient norms over depth and training steps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage


def plot_gradient_flow(
    norms: np.ndarray[Any, Any], steps: Sequence[int], layers: Sequence[str], title: str
) -> RGBImage:
    """Plots gradient norms: a map over depth and steps, and beside it the profiles of the first and last step.

    Args:
        norms: gradient norms, (layers, steps); NaN if there is no gradient, Inf if it is not finite.
        steps: optimizer step of each column, ascending.
        layers: names of the rows, input to output.
        title: title of the figure; long ones are wrapped.
    """
    figure, (left, right) = new_figure(2)
    figure.set_size_inches(12, min(3.0 + 0.16 * len(layers), 14))
    figure.suptitle(textwrap.fill(title, 145), fontsize="medium")
    _map_gradients(figure, left, norms, steps)
    _profile_gradients(right, norms, steps)
    every = math.ceil(len(layers) / 80)
    size = 8 if len(layers) <= 40 else 6
    left.set_yticks(range(0, len(layers), every), [_shortened(name) for name in layers[::every]], fontsize=size)
    left.set(xlabel="step", ylabel="layer")
    right.set_yticks(range(0, len(layers), every), range(1, len(layers) + 1, every), fontsize=size)
    right.set(ylim=(len(layers) - 0.5, -0.5), xlabel="gradient norm", ylabel="depth, from input to output")
    return render_figure(figure)


def _shortened(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _map_gradients(figure: Any, ax: Any, norms: np.ndarray[Any, Any], steps: Sequence[int]) -> None:
    """Map of log10 norms; zero, non-finite and missing gradients have colours of their own."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    width = steps[-1] - steps[-2] if len(steps) > 1 else 1
    edges = np.array([*steps, steps[-1] + width])
    rows = np.arange(len(norms) + 1) - 0.5
    ordinary = np.isfinite(norms) & (norms > 0)
    logarithm = np.log10(norms, where=ordinary, out=np.full(norms.shape, math.nan))
    if ordinary.any():
        mesh = ax.pcolormesh(edges, rows, np.ma.masked_invalid(logarithm), cmap="viridis")
        figure.colorbar(mesh, ax=ax, label="log10 gradient norm")
    kinds = {
        "gradient zero": (norms == 0, "white"),
        "not finite": (np.isinf(norms), "tab:red"),
        "no gradient": (np.isnan(norms), "0.75"),
    }
    seen = {name: (where, color) for name, (where, color) in kinds.items() if where.any()}
    for where, color in seen.values():
        ax.pcolormesh(edges, rows, np.ma.masked_where(~where, where), cmap=ListedColormap([color]))
    if seen:
        handles = [Patch(facecolor=color, edgecolor="0.4", label=name) for name, (_, color) in seen.items()]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize="small", frameon=False)
    ax.invert_yaxis()


def _profile_gradients(ax: Any, norms: np.ndarray[Any, Any], steps: Sequence[int]) -> None:
    """Norm against depth at the first and last step; zeros are crosses at the left edge."""
    depth = np.arange(len(norms))
    columns = {0: "tab:blue", len(steps) - 1: "tab:red"}
    for column, color in columns.items():
        profile = norms[:, column]
        ordinary = np.isfinite(profile) & (profile > 0)
        label = f"step {steps[column]}"
        ax.plot(np.where(ordinary, profile, math.nan), depth, marker="o", markersize=3, color=color, label=label)
        if (zero := profile == 0).any():
            edge = np.full(zero.sum(), 0.01)
            transform = ax.get_yaxis_transform()
            ax.plot(edge, depth[zero], "x", color=color, transform=transform, label=f"{label}: zero", clip_on=False)
    ax.set_xscale("log")
    ax.grid(True, alpha=0.3)
    ax.legend(fontsize="small")
