"""Augmentation of whole batches on the device.

`Augment` draws independently for every sample; nothing loops over samples or copies to the host, so the cost is small
compared with a training step. Any other callable on batches can stand in for it, such as the transforms of
`torchvision.transforms.v2`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError, one_line

#: A callable on batches: images, uint8 (N, C, H, W) on the device, to images of the same shape and dtype. Declared to
#: return Any because jsonargparse reads `Callable[[Tensor], Tensor]` as a factory of tensors.
BatchTransform = Callable[[Tensor], Any]


@dataclass
class Augment:
    """Random crops, flips and cutout of a batch of images.

    Args:
        crop: padding in pixels, by reflection, before a random crop to the original size; 0 for none. He et al. 2015
            (arXiv 1512.03385), section 4.2, use 4 of 32.
        flip: mirror each image left to right with probability 1/2; ignored by data modules whose classes are not
            mirror-symmetric, such as digits.
        cutout: side in pixels of a square that is blanked at a random position, which can be partly outside the image;
            0 for none. DeVries and Taylor 2017 (arXiv 1708.04552).
        fill: value of the blanked pixels, in [-1, 1].
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
        """Raises a UserError if images of this shape, (C, H, W), cannot be augmented this way."""
        if len(shape) != 3:
            raise UserError(f"augment is for images (C, H, W), not for samples of the shape {tuple(shape)}")
        _check_padding(self.crop, *shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        """Augments images (N, C, H, W), uint8 in [0, 255] or float in [-1, 1]; shape and dtype are preserved."""
        if self.crop:
            x = random_crop(x, self.crop)
        if self.flip:
            x = random_flip(x)
        if self.cutout:
            fill = self.fill if x.dtype.is_floating_point else round(127.5 * (self.fill + 1))
            x = random_cutout(x, self.cutout, fill)
        return x


class PerSample:
    """Applies a transform to every sample of a batch with a draw of its own.

    The transforms of `torchvision.transforms.v2` draw once per call, so a batch shares one angle, one crop, one flip.
    The loop over samples costs one call of the transform for each.

    Args:
        transform: callable on one image, uint8 (C, H, W), that preserves shape and dtype.
    """

    def __init__(self, transform: BatchTransform) -> None:
        self.transform = transform

    def __call__(self, x: Tensor) -> Tensor:
        """Transforms each sample of the batch (N, C, H, W)."""
        return torch.stack([self.transform(sample) for sample in x])

    def __repr__(self) -> str:
        return f"PerSample({describe(self.transform)})"


def describe(augment: Any) -> str:
    """Name of a callable for messages: its class, or its own name if it is a function."""
    return getattr(augment, "__name__", None) or type(augment).__name__


def apply(augment: BatchTransform, x: Tensor) -> Tensor:
    """Augments a batch and checks that shape and dtype are preserved.

    Args:
        augment: callable on batches.
        x: images, (N, C, H, W).

    Raises:
        UserError: the callable fails on this batch, or changes its shape or dtype.
    """
    before = _describe_batch(x)
    try:
        augmented = augment(x)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a foreign callable can raise anything
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(f"augment {describe(augment)} fails on a batch of {before}: {reason}") from error
    if not isinstance(augmented, Tensor) or augmented.shape != x.shape or augmented.dtype != x.dtype:
        after = _describe_batch(augmented) if isinstance(augmented, Tensor) else type(augmented).__name__
        raise UserError(
            f"augment {describe(augment)} returns {after} for a batch of {before}; it must preserve shape and dtype "
            "(the data module converts to floats in [-1, 1] afterwards)"
        )
    return augmented


def _describe_batch(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Shifts each image of the batch (N, C, H, W) by up to `padding` pixels, with reflection padding."""
    n, _, height, width = x.shape
    _check_padding(padding, height, width)
    top, left = torch.randint(-padding, padding + 1, (2, n, 1), device=x.device)
    rows, columns = _reflected(height, top), _reflected(width, left)
    # One gather of whole windows; torch's reflection padding does not support uint8 on every device.
    index = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1)
    return x.flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).view(x.shape)


def _check_padding(padding: int, height: int, width: int) -> None:
    if padding >= min(height, width):
        raise UserError(f"augment.crop {padding} is too large for images of {height}x{width} pixels")


def _reflected(size: int, shift: Tensor) -> Tensor:
    """Source index (N, size) of each pixel in lines shifted by `shift` (N, 1), reflected at the border."""
    index = (torch.arange(size, device=shift.device) + shift).abs()
    return size - 1 - (size - 1 - index).abs()


def random_flip(x: Tensor) -> Tensor:
    """Mirrors each image of the batch (N, C, H, W) left to right with probability 1/2."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def random_cutout(x: Tensor, side: int, fill: float) -> Tensor:
    """Fills a square of `side` pixels at a random center in each image of the batch (N, C, H, W)."""
    n, _, height, width = x.shape
    inside = [
        ((torch.arange(size, device=x.device) - torch.randint(size, (n, 1), device=x.device) + side // 2) // side) == 0
        for size in (height, width)
    ]
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1), fill)
