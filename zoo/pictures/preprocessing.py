"""How pictures are brought to a model's input, as data modules and checkpoints say it in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from zoo.errors import UserError, shown
from zoo.pictures.decoding import WHITE, Color, Fit, decode_image, prepare_image

LARGEST_SIDE = 16_384  # pixels; a larger input in a checkpoint is taken for damage


@dataclass(frozen=True)
class Preprocessing:
    """How any picture is brought to a model's input.

    Attributes:
        size: height and width of the input, in pixels.
        channels: 1 for grey, 3 for color.
        fit: how another aspect ratio is treated, see `prepare_image`.
        background: red, green and blue, 0 to 255, below transparent pixels and of borders.
        range: values of black and white in the model's input.
    """

    size: tuple[int, int]
    channels: Literal[1, 3] = 3
    fit: Fit = "crop"
    background: Color = WHITE
    range: tuple[float, float] = (-1.0, 1.0)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Checks plain values, such as those in a checkpoint, and makes a `Preprocessing` of them.

        Raises:
            UserError: a value is missing, unknown or impossible.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, Mapping) or not set(values) <= names or "size" not in values:
            raise UserError(f"preprocessing is {shown(values)}; it must be a mapping of {', '.join(sorted(names))}")
        checks = {
            "size": lambda v: _integers(v, 2, 1, LARGEST_SIDE),
            "channels": lambda v: type(v) is int and v in (1, 3),
            "fit": lambda v: isinstance(v, str) and v in get_args(Fit),
            "background": lambda v: _integers(v, 3, 0, 255),
            "range": lambda v: _is_range(v),
        }
        for name, value in values.items():
            if not checks[name](value):
                raise UserError(f"preprocessing has the {name} {shown(value)}, which is not possible")
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**known)

    def plain(self) -> dict[str, Any]:
        """The same as plain values: numbers, strings and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the input."""
        return (self.channels, *self.size)

    def pixels(self, picture: Path | Image.Image) -> Tensor:
        """A picture as uint8 (C, H, W).

        Args:
            picture: path to a file, or an open picture.

        Raises:
            Exception: an error of any type: the file is broken, or its format or range of values is not supported.
        """
        options = (self.size, self.channels, self.fit, self.background)
        read = decode_image(picture, *options) if isinstance(picture, Path) else prepare_image(picture, *options)
        return torch.from_numpy(read).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 in [0, 255] as float32 in `range`; of any shape."""
        low, high = self.range
        return pixels.float().div_(255 / (high - low)).add_(low)


def _integers(value: Any, count: int, least: int, most: int) -> bool:
    sequence = isinstance(value, (list, tuple)) and len(value) == count
    return sequence and all(type(number) is int and least <= number <= most for number in value)


def _is_range(value: Any) -> bool:
    sequence = isinstance(value, (list, tuple)) and len(value) == 2
    return sequence and all(type(number) in (int, float) for number in value) and value[0] < value[1]
