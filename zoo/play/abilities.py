"""What a model can be tried out with, by the contracts that it offers. Nothing here depends on Gradio."""

from __future__ import annotations

from typing import Any, Literal

from zoo.contracts import (
    Decoding,
    Generative,
    Interpolating,
    LatentSpace,
    PredictiveClassifier,
    SequenceMapping,
    TextStream,
    Trajectories,
    offers,
)
from zoo.errors import UserError
from zoo.hub.predicting import preprocessing_of
from zoo.models.diffusion.module import Diffusion

Ability = Literal["classify", "sample", "wander", "path", "film", "edit", "write", "transduce"]


def abilities_of(model: Any) -> list[Ability]:
    """What a model can be tried out with, in the order of the page's tabs.

    | ability | contract |
    | --- | --- |
    | `classify` | `PredictiveClassifier` of pictures whose preprocessing is known |
    | `sample` | `Generative`, of images or points |
    | `wander` | `LatentSpace`: from one sample to another |
    | `path` | `Interpolating`, without `LatentSpace`: the path of a random pair |
    | `film` | `Trajectories` |
    | `edit` | a `Diffusion` model of images |
    | `write` | `TextStream` |
    | `transduce` | `SequenceMapping` |

    Raises:
        UserError: there is nothing; the message says why.
    """
    found: list[Ability] = []
    pictures = len(getattr(model, "input_shape", ())) == 3
    if offers(model, PredictiveClassifier) and pictures:
        preprocessing_of(model)
        found.append("classify")
    if offers(model, Generative) and not offers(model, Decoding):
        found.append("sample")
        if offers(model, LatentSpace):
            found.append("wander")
        elif offers(model, Interpolating):
            found.append("path")
        if offers(model, Trajectories):
            found.append("film")
        if isinstance(model, Diffusion) and pictures:
            found.append("edit")
    if offers(model, TextStream):
        found.append("write")
    if offers(model, SequenceMapping):
        found.append("transduce")
    if not found:
        raise UserError(
            f"there is nothing to try out of a {type(model).__name__}: it neither classifies pictures, nor draws "
            "samples, nor generates text"
        )
    return found


def describe(model: Any) -> str:
    """Class, shape of a sample and size of a model, in one line; a moving average of its weights is not counted."""
    average = set() if getattr(model, "ema", None) is None else set(model.ema.parameters())
    count = sum(parameter.numel() for parameter in model.parameters() if parameter not in average)
    shape = tuple(model.input_shape)
    if len(shape) == 3:
        about = f"images of {shape[2]}x{shape[1]} pixels" + (" in color" if shape[0] == 3 else "")
    elif getattr(model, "tokens", False):
        about = f"sequences of {shape[0]} tokens"
    else:
        about = f"points in {shape[0]} dimension{'s' if shape[0] > 1 else ''}"
    return f"{type(model).__name__} for {about}, {count:,} parameters"
