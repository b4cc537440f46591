"""Augmentation of whole batches on the device, with a draw of its own for every sample.

Nothing here loops over samples or copies to the host, so it costs next to nothing beside a training step, and the data
path needs no workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import UserError


@dataclass
class Augment:
    """Random crops, mirror images and cutout of a batch of images.

    Args:
        crop: pixels by which the image is padded (by reflection) on every side before a window of its own size is
            cut out of it at random; 0 for none. He et al. 2015 (arXiv 1512.03385), section 4.2, take 4 of 32.
        flip: mirror each image left to right with probability 1/2; the zoo's data modules leave it out where labels do
            not survive it, as those of digits.
        cutout: side in pixels of a square that is blanked at a random place, partly outside the image at its
            borders; 0 for none. DeVries and Taylor 2017 (arXiv 1708.04552).
        fill: what the square is filled with, in [-1, 1].
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    fill: float = 0.0

    def __post_init__(self) -> None:
        for name, value in {"crop": self.crop, "cutout": self.cutout}.items():
            if value < 0:
                raise UserError(f"augment.{name} is {value}; it must be 0 or more pixels")
        if not -1 <= self.fill <= 1:
            raise UserError(f"augment.fill is {self.fill}; it must be from -1 for black to 1 for white")

    def check(self, shape: Sequence[int]) -> None:
        """Raises a UserError unless images of this shape, (C, H, W), can be augmented so."""
        if len(shape) != 3:
            raise UserError(f"augment is for images (C, H, W), not for samples of the shape {tuple(shape)}")
        _check_padding(self.crop, *shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 in [0, 255] or float in [-1, 1], to as many of the same shape and type."""
        if self.crop:
            x = random_crop(x, self.crop)
        if self.flip:
            x = random_flip(x)
        if self.cutout:
            fill = self.fill if x.dtype.is_floating_point else round(127.5 * (self.fill + 1))
            x = random_cutout(x, self.cutout, fill)
        return x


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Shifts each image (C, H, W) of the batch by up to `padding` pixels, what comes in being its reflection."""
    n, _, height, width = x.shape
    _check_padding(padding, height, width)
    top, left = torch.randint(-padding, padding + 1, (2, n, 1), device=x.device)
    rows, columns = _reflected(height, top), _reflected(width, left)
    # One gather of whole windows; torch's own reflection does not know bytes on every device.
    place = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1)
    return x.flatten(2).gather(2, place.expand(-1, x.shape[1], -1)).view(x.shape)


def _check_padding(padding: int, height: int, width: int) -> None:
    if padding >= min(height, width):
        raise UserError(f"augment.crop {padding} is too large for images of {height}x{width} pixels")


def _reflected(size: int, shift: Tensor) -> Tensor:
    """Where the pixels of lines moved by `shift` (N, 1) come from, (N, size), the border being the mirror's axis."""
    index = (torch.arange(size, device=shift.device) + shift).abs()
    return size - 1 - (size - 1 - index).abs()


def random_flip(x: Tensor) -> Tensor:
    """Mirrors each image (C, H, W) of the batch left to right with probability 1/2."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def random_cutout(x: Tensor, side: int, fill: float) -> Tensor:
    """Fills a square of `side` pixels, its centre anywhere in the image, of each image (C, H, W) of the batch."""
    n, _, height, width = x.shape
    inside = [
        ((torch.arange(size, device=x.device) - torch.randint(size, (n, 1), device=x.device) + side // 2) // side) == 0
        for size in (height, width)
    ]
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1), fill)
