"""Images as arrays and files: conversion to bytes, grids, PNG, GIF and NPZ. A file is overwritten on request only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.files import write_output

#: uint8 (height, width, 3).
RGBImage = np.ndarray[Any, np.dtype[np.uint8]]


def to_uint8(x: Tensor) -> RGBImage:
    """Converts images (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C)."""
    return x.detach().cpu().float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def image_grid(x: Tensor, columns: int | None = None, cell: int = 32, gap: int = 2) -> RGBImage:
    """Lays out images in a grid; small ones are enlarged by an integer factor.

    Args:
        x: (N, C, H, W) in [-1, 1], C is 1 or 3.
        columns: images per row; by default the grid is square.
        cell: least height of an image in the grid, in pixels.
        gap: white pixels between images and around them; none around a single image.

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


def show_images(
    ax: Any, rows: Sequence[Tensor], columns: Sequence[str] = (), names: Sequence[str] = (), title: str = ""
) -> None:
    """Draws a grid of images with names beside it.

    Args:
        ax: axes of matplotlib.
        rows: images of each row, (columns, C, H, W) in [-1, 1], equally many in all rows.
        columns: names above the columns, from the first one.
        names: names at the left of the rows, from the first one.
        title: title of the axes.
    """
    images = torch.cat(list(rows)).clamp(-1, 1)
    factor, gap = math.ceil(28 / images.shape[-1]), 2
    side = images.shape[-1] * factor + gap
    ax.imshow(image_grid(images, len(rows[0]), cell=images.shape[-2] * factor, gap=gap), interpolation="nearest")
    ax.set_xticks([side * (k + 0.5) for k in range(len(columns))], columns, fontsize="small")
    ax.set_yticks([side * (k + 0.5) for k in range(len(names))], names, fontsize="small")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize="medium")


def save_png(path: Path, image: RGBImage, overwrite: bool = False, colors: int | None = None) -> None:
    """Writes an image (height, width, 3).

    Args:
        path: file to write.
        image: pixels.
        overwrite: replace an existing file.
        colors: number of colors, at most 256, to which the image is reduced for a smaller file; all by default.
    """
    picture = Image.fromarray(image)
    if colors is not None:
        picture = picture.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with write_output(path, overwrite) as file:
        picture.save(file, "PNG", optimize=colors is not None)


def save_gif(path: Path, frames: Sequence[RGBImage], seconds: float = 0.08, overwrite: bool = False) -> None:
    """Writes frames of one size as an endless animation that shows each for `seconds`."""
    first, *rest = [Image.fromarray(frame).quantize(64, method=Image.Quantize.FASTOCTREE) for frame in frames]
    with write_output(path, overwrite) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0)


def save_npz(path: Path, samples: Tensor, labels: Tensor | None = None, overwrite: bool = False) -> None:
    """Writes samples as `arr_0`, images as uint8 (N, H, W, C), points as float32 (N, D); labels as `arr_1`."""
    array = to_uint8(samples) if samples.ndim == 4 else samples.cpu().float().numpy()
    arrays = [array] if labels is None else [array, labels.cpu().numpy()]
    with write_output(path, overwrite) as file:
        np.savez_compressed(file, *arrays)
