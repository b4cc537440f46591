"""Samples as pictures: grids of images, plots of points, films. Whatever writes a file refuses to replace one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.errors import UserError

Picture = np.ndarray[Any, np.dtype[np.uint8]]


def to_uint8(x: Tensor) -> Picture:
    """Images (N, C, H, W) in [-1, 1] to bytes (N, H, W, C)."""
    return x.detach().cpu().float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def grid(x: Tensor, columns: int | None = None, cell: int = 32, gap: int = 2) -> Picture:
    """Images side by side, enlarged by a whole factor so that tiny ones can be seen.

    Args:
        x: (N, C, H, W) in [-1, 1], C is 1 or 3.
        columns: images in a row; as many as rows where it is not given.
        cell: least height of an image in the picture, in pixels.
        gap: white pixels between images, and around them; around a single one there are none.

    Returns:
        (height, width, 3).
    """
    images = to_uint8(x)
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, math.ceil(cell / images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = math.ceil(len(images) / columns)
    gap = gap if len(images) > 1 else 0
    height, width = images.shape[1] + gap, images.shape[2] + gap
    picture = np.full((rows * height + gap, columns * width + gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height + gap, index % columns * width + gap
        picture[top : top + height - gap, left : left + width - gap] = image
    return picture


def plot_points(points: Tensor, data: Tensor | None = None, size: float = 5.0, within: Tensor | None = None) -> Picture:
    """A histogram of points on a line, a scatter plot of the first two coordinates of others.

    Args:
        points: samples, (N, D).
        data: what they should look like, (M, D), drawn behind them.
        size: of the square picture, in inches at 100 dots each.
        within: points (..., D) for which there is to be room; the data where it is not given, else the samples.

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
    return draw(figure)


def _limits(x: Tensor) -> tuple[float, float]:
    low, high = x.min().item(), x.max().item()
    margin = 0.15 * (high - low) + 1e-3
    return low - margin, high + margin


def picture_of(samples: Tensor, columns: int | None = None, data: Tensor | None = None) -> Picture:
    """The picture that suits the samples: a grid for images (N, C, H, W), a plot for points (N, D)."""
    return grid(samples, columns) if samples.ndim == 4 else plot_points(samples, data)


def film_of(states: Tensor, columns: int | None = None) -> list[Picture]:
    """A picture of each state of the samples, (frames, N, ...): points in all of them on the same axes."""
    if states.ndim == 5:
        return [grid(state, columns) for state in states]
    return [plot_points(state, within=states) for state in states]


def new_figure(panels: int, size: float = 3.2, columns: int = 3) -> tuple[Any, list[Any]]:
    """A matplotlib figure with that many panels, outside pyplot's global state, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(size * 1.3 * columns if panels > 1 else size, size * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def draw(figure: Any) -> Picture:
    """The figure's pixels, (height, width, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def plot_attention(maps: dict[str, Tensor], looking: Sequence[str], looked_at: Sequence[str]) -> Picture:
    """Who looks at whom: a panel for each head, one layer in each row, dark where the weight is near 1.

    Args:
        maps: by the name of the layer, (H, T, S), rows of weights that sum to 1.
        looking: names of the T positions, from top to bottom.
        looked_at: names of the S positions, from left to right.
    """
    heads = len(next(iter(maps.values())))
    figure, axes = new_figure(heads * len(maps), size=2.2, columns=heads)
    panels = ((name, head, weights) for name, layer in maps.items() for head, weights in enumerate(layer))
    for ax, (name, head, weights) in zip(axes, panels, strict=True):
        ax.imshow(weights.detach().cpu().float().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(looked_at)), looked_at, fontsize=7)
        ax.set_yticks(range(len(looking)), looking, fontsize=7)
        ax.set_title(f"{name}, head {head + 1}", fontsize=7)
    return draw(figure)


def refuse_existing(path: Path) -> Path:
    """The path, if nothing is there.

    Raises:
        UserError: there is something already.
    """
    if path.exists():
        raise UserError(f"{path} is there already and is not overwritten; choose another name")
    return path


def _new_file(path: Path) -> Path:
    """The path of a file that is not there yet, in a folder that is made where it is missing."""
    refuse_existing(path).parent.mkdir(parents=True, exist_ok=True)
    return path


def unused_path(path: Path) -> Path:
    """The path, or one beside it with a number, so that nothing is overwritten where a run is taken up again."""
    number, candidate = 1, path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


def save_png(path: Path, picture: Picture) -> None:
    """Writes one picture (height, width, 3)."""
    Image.fromarray(picture).save(_new_file(path))


def save_gif(path: Path, frames: Sequence[Picture], seconds: float = 0.08) -> None:
    """Writes pictures of one size as a film that repeats, each shown for `seconds`."""
    first, *rest = [Image.fromarray(frame).quantize(64, method=Image.Quantize.FASTOCTREE) for frame in frames]
    first.save(_new_file(path), save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0)


def save_npz(path: Path, samples: Tensor, labels: Tensor | None = None) -> None:
    """Writes raw samples as `arr_0`, images as uint8 (N, H, W, C), points as float32 (N, D); labels as `arr_1`."""
    array = to_uint8(samples) if samples.ndim == 4 else samples.cpu().float().numpy()
    arrays = [array] if labels is None else [array, labels.cpu().numpy()]
    np.savez_compressed(_new_file(path), *arrays)


def plot_curves(metrics: dict[str, list[tuple[int, float]]]) -> Picture:
    """Curves over training, a panel for each quantity, training and validation together.

    `x_floor` and `x_optimum` become a dashed line in the panel of `x`.

    Args:
        metrics: for each metric's name the points (step, value).
    """
    panels: dict[str, list[str]] = {}
    for name in sorted(metrics):
        quantity = name.split("/", 1)[-1].removesuffix("_floor").removesuffix("_optimum")
        panels.setdefault(quantity, []).append(name)
    figure, axes = new_figure(max(1, len(panels)))
    for ax, (quantity, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            steps, values = zip(*metrics[name], strict=True)
            if name.endswith(("_floor", "_optimum")):
                ax.axhline(values[-1], linestyle="--", color="0.4", label=f"{name} {values[-1]:.3g}")
            else:
                ax.plot(steps, values, label=name, marker="." if len(steps) < 30 else None)
        finite = torch.tensor([value for name in names for _, value in metrics[name]])
        if finite.min() > 0 and finite.max() / finite.min() > 100:
            ax.set_yscale("log")
        ax.set(title=quantity, xlabel="step")
        ax.legend(fontsize="small")
    return draw(figure)


def plot_gradient_flow(norms: np.ndarray[Any, Any], steps: Sequence[int], layers: Sequence[str], title: str) -> Picture:
    """The gradient over depth and time: a map of all measurements, and beside it the profiles of first and last.

    Args:
        norms: of the gradients, (layers, steps); nan where there is none, inf where it is not finite.
        steps: of the columns, rising.
        layers: names of the rows, the first layer first.
        title: may be a sentence.
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
    return draw(figure)


def _shortened(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _map_gradients(figure: Any, ax: Any, norms: np.ndarray[Any, Any], steps: Sequence[int]) -> None:
    """Colours for the logarithm of what has one; what is zero, not finite or missing has a colour of its own."""
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
    """Norm against depth at the first and at the last step; zeros stand as crosses at the left edge."""
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
