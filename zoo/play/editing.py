"""Edits of a picture on a page: a painted part redrawn, and variations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo.errors import UserError, check_at_least, check_at_most, check_seed
from zoo.hub.editing import EditResult, EditSession, fit_image
from zoo.models.base import eval_mode
from zoo.models.generative import check_samples
from zoo.pictures.decoding import decoding, describe_error, flatten_image
from zoo.play.cost import measured
from zoo.play.drawing import ANY_CLASS, Drawn, find_labels, picture_of

MOST_RESULTS = 16
NO_CLASS = "no class"


@dataclass(frozen=True)
class Settings:
    """What all edits have in common.

    Attributes:
        label: name of the picture's class, or `NO_CLASS`.
        n: number of results.
        steps: number of noise levels.
        seed: random seed of the noise.
        guidance_scale: weight of classifier-free guidance; None for the model's own.
    """

    label: str = NO_CLASS
    n: int = 4
    steps: int = 20
    seed: int = 0
    guidance_scale: float | None = None


def redraw(model: Any, picture: Image.Image, painted: Image.Image, settings: Settings, resamples: int = 5) -> Drawn:
    """Redraws the painted part of a picture: input, input without this part, and results in one row of pictures.

    Args:
        model: diffusion model of images.
        picture: picture of any size.
        painted: picture of the same size, opaque where it was painted on.
        settings: what all edits have in common.
        resamples: number of times that each step is repeated.

    Raises:
        UserError: nothing is painted, or a setting is out of range.
    """
    check_at_least(1, resamples=resamples)
    redrawn = painted_pixels(model, painted)
    session = _session(model, picture, settings)
    with measured(model) as cost, eval_mode(model):
        result = session.inpaint(redrawn, resamples)
    return _drawn(model, result, f"{redrawn.float().mean():.0%} of the pixels redrawn: {cost}")


def vary(model: Any, picture: Image.Image, sigma: float, settings: Settings) -> Drawn:
    """Redraws details of a picture that are finer than a noise level (SDEdit): input and results.

    Args:
        model: diffusion model of images.
        picture: picture of any size.
        sigma: noise level, in units of the pixel range [-1, 1].
        settings: what all edits have in common.
    """
    session = _session(model, picture, settings, sigma)
    with measured(model) as cost, eval_mode(model):
        result = session.vary()
    return _drawn(model, result, f"redrawn below sigma {min(sigma, model.sigma_max):g}: {cost}")


def painted_pixels(model: Any, painted: Image.Image) -> Tensor:
    """Mask (1, 1, H, W), true for pixels of the model of which more than half is painted on.

    Args:
        model: model of images.
        painted: picture with an alpha channel, opaque where it was painted on.

    Raises:
        UserError: no pixel is.
    """
    if painted.mode != "RGBA":
        painted = painted.convert("RGBA")
    redrawn = fit_image(painted.getchannel("A"), (1, *model.input_shape[1:])) > 0
    if not redrawn.any():
        raise UserError("there is nothing to redraw: paint over a part of the picture")
    return redrawn


def brought_to(model: Any, picture: Image.Image) -> Tensor:
    """A picture in the model's size and channels, (1, C, H, W) in [-1, 1].

    Raises:
        UserError: the picture is broken.
    """
    try:
        with decoding():
            image = flatten_image(picture, model.input_shape[0], _background(model))
    except Exception as error:  # Pillow raises errors of many types
        raise UserError(f"the picture cannot be read: {describe_error(error)}") from error
    return fit_image(image, model.input_shape)


def _background(model: Any) -> tuple[int, int, int]:
    known = getattr(getattr(model, "trained_on", None), "preprocessing", None)
    return (255, 255, 255) if known is None else known.background


def _session(model: Any, picture: Image.Image, settings: Settings, sigma: float | None = None) -> EditSession:
    check_seed(seed=settings.seed)
    check_at_least(1, results=settings.n, steps=settings.steps)
    check_at_most(MOST_RESULTS, results=settings.n)
    labels = find_labels(model, ANY_CLASS if settings.label == NO_CLASS else settings.label, 1)
    scale = model.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    model.check_guidance(scale)
    label = None if labels is None else int(labels)
    image = brought_to(model, picture)
    return EditSession(model, image, settings.n, settings.steps, settings.seed, label, scale, sigma)


def _drawn(model: Any, result: EditResult, description: str) -> Drawn:
    check_samples(result.after, type(model).__name__)
    images = torch.cat([image.float().cpu() for image in (*result.before, result.after)])
    return Drawn(picture_of(images), description)
