"""The class of a picture, with the uncertainty of the model, and the picture that the model sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from zoo.contracts import Ensemble, offers
from zoo.errors import UserError, check_at_least, check_at_most
from zoo.hub.predicting import preprocessing_of
from zoo.models.dropout import DROPOUT_LAYERS
from zoo.pictures.decoding import decoding, describe_error
from zoo.play.drawing import known_names, picture_of
from zoo.plotting.images import RGBImage

MOST_PASSES = 200
USUAL_PASSES = 20


class Classified(NamedTuple):
    """The prediction for a picture.

    Attributes:
        probabilities: probability of every class, by its name.
        uncertainty: entropy, and disagreement of the passes with dropout, in one line.
        seen: the picture in the model's size and channels, enlarged: uint8 (height, width, 3).
    """

    probabilities: dict[str, float]
    uncertainty: str
    seen: RGBImage


def has_dropout(model: Any) -> bool:
    """Whether passes with dropout on differ, so that their disagreement says something."""
    layers = (m for m in model.modules() if isinstance(m, DROPOUT_LAYERS)) if isinstance(model, nn.Module) else ()
    return offers(model, Ensemble) and any(layer.p > 0 for layer in layers)


def classify(model: Any, picture: Image.Image, passes: int = 0) -> Classified:
    """Classifies a picture of any size, brought to the model's input as in training.

    Args:
        model: classifier; see `zoo.hub.predicting.predict_files`.
        picture: picture of any size and mode.
        passes: number of passes with dropout on that are averaged; 0 for one pass with dropout off.

    Raises:
        UserError: the picture is broken, or the model has no dropout to average over.
    """
    check_at_least(0, passes=passes)
    check_at_most(MOST_PASSES, passes=passes)
    if passes and not has_dropout(model):
        raise UserError(f"passes is {passes}, but the {type(model).__name__} has no dropout: all of them are the same")
    preprocessing = preprocessing_of(model)
    try:
        with decoding():
            pixels = preprocessing.pixels(picture)
    except Exception as error:  # Pillow raises errors of many types
        raise UserError(f"the picture cannot be read: {describe_error(error)}") from error
    x = preprocessing.normalize(pixels[None].to(next(model.parameters()).device))
    with torch.no_grad(), _averaging(model, passes):
        prediction = model.predictive(x)
    probabilities = prediction.probabilities[0].tolist()
    names = known_names(model, len(probabilities))
    line = uncertainty(model, prediction.entropy.item(), prediction.mutual_information.item(), passes)
    seen = picture_of(pixels[None].float() / 127.5 - 1)
    return Classified(dict(zip(names, probabilities, strict=True)), line, seen)


def uncertainty(model: Any, entropy: float, mutual_information: float, passes: int) -> str:
    """One line on the uncertainty of a prediction, in nats."""
    line = f"Entropy {entropy:.2f} nats."
    if hasattr(model, "temperature"):
        temperature = float(model.temperature)
        calibrated = f"calibrated (temperature {temperature:.2f})" if temperature != 1 else "not calibrated"
        line = f"{line[:-1]}; the probabilities are {calibrated}."
    if passes:
        return f"{line} {mutual_information:.2f} nats are disagreement between {passes} passes with dropout."
    if offers(model, Ensemble) and model.ensemble:
        return f"{line} {mutual_information:.2f} nats are disagreement in the ensemble."
    if has_dropout(model):
        return f"{line} One pass with dropout off: give a number of passes for the model's own uncertainty."
    return f"{line} The model has no dropout, which would tell its own uncertainty."


@contextmanager
def _averaging(model: Any, passes: int) -> Iterator[None]:
    """Inside the context, the model averages this number of passes with dropout."""
    if not offers(model, Ensemble):
        yield
        return
    before, model.mc_samples = model.mc_samples, passes
    try:
        yield
    finally:
        model.mc_samples = before
