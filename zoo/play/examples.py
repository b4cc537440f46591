"""Pictures to begin with: those of a data module that is included in the package, else the model's own samples."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from zoo.contracts import Generative, offers
from zoo.datamodules import Digits, FashionMNISTSubset
from zoo.play.drawing import class_names, picture_of
from zoo.plotting.images import RGBImage

#: Data modules whose pictures are in the package.
INCLUDED = (Digits, FashionMNISTSubset)


class Example(NamedTuple):
    """A picture to begin with.

    Attributes:
        picture: enlarged to about 512 pixels, uint8 (height, width, 3).
        label: name of its class; None if it has none.
    """

    picture: RGBImage
    label: str | None


def example(model: Any, number: int) -> Example | None:
    """A picture of the kind that a model was trained on.

    Args:
        model: model of images.
        number: which one; they are in random order.

    Returns:
        A test picture of the data that is included in the package and has the model's shape and classes; else a
        sample of the model, whose seed is `number`; None for a model that draws none.
    """
    known = getattr(getattr(model, "trained_on", None), "class_names", None)
    for data in INCLUDED:
        if tuple(model.input_shape) == data.input_shape and known == data.class_names:
            x, y = _test_split(data)
            index = number % len(x)
            return Example(picture_of(x[index : index + 1]), data.class_names[int(y[index])])
    if not offers(model, Generative):
        return None
    generator = torch.Generator().manual_seed(number)
    names = class_names(model)
    label = names[number % len(names)] if names else None
    labels = None if label is None else torch.tensor([names.index(label)])
    return Example(picture_of(model.sample(1, labels=labels, generator=generator).cpu()), label)


def blank(model: Any, color: tuple[int, int, int], side: int = 320) -> Image.Image:
    """An empty picture of about `side` pixels to draw on, of the aspect ratio of the model's input."""
    height, width = model.input_shape[1:]
    factor = side / max(height, width)
    return Image.new("RGB", (round(width * factor), round(height * factor)), color)


def is_blank(picture: Image.Image) -> bool:
    """Whether a picture has one color only: nothing is drawn on it."""
    bands = picture.convert("RGB").getextrema()
    return all(low == high for low, high in bands)  # type: ignore[misc] # a pair for each band


@cache
def _test_split(data: type) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) in [-1, 1] and labels (N,) of a data module's test split, in random order."""
    pixels, labels = data().load_split(train=False)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return pixels[order].float() / 127.5 - 1, labels[order]
