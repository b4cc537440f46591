"""Classes of pictures on the page: the model's own preprocessing, and its uncertainty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from zoo import MLPClassifier
from zoo.errors import UserError
from zoo.pictures.preprocessing import Preprocessing
from zoo.play.classifying import classify, has_dropout

NAMES = ("left", "right")


def classifier(dropout=0.0):
    """A classifier of 4x4 grey pictures on black, which are padded."""
    model = MLPClassifier((1, 4, 4), 2, width=16, depth=2, input_dropout=dropout, hidden_dropout=dropout)
    preprocessing = Preprocessing((4, 4), 1, "pad", (0, 0, 0))
    model.trained_on = replace(model.trained_on, class_names=NAMES, preprocessing=preprocessing)
    return model.eval()


def drawn():
    """A wide picture with a transparent right half: on black, only the left half is bright."""
    picture = Image.new("RGBA", (16, 8), (255, 255, 255, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 8, 8))
    return picture


def test_a_picture_is_classified_after_the_models_preprocessing():
    model, preprocessing = classifier(), Preprocessing((4, 4), 1, "pad", (0, 0, 0))
    found = classify(model, drawn())
    pixels = preprocessing.pixels(drawn())
    expected = model.predictive(preprocessing.normalize(pixels[None])).probabilities[0].tolist()
    assert found.probabilities == pytest.approx(dict(zip(NAMES, expected, strict=True)))
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_the_picture_that_the_model_sees_is_shown_pixel_by_pixel():
    seen = classify(classifier(), drawn()).seen
    assert seen.shape == (512, 512, 3)
    small = seen[64::128, 64::128, 0]
    assert np.array_equal(small, Preprocessing((4, 4), 1, "pad", (0, 0, 0)).pixels(drawn())[0].numpy())
    assert small[0].max() == 0, "a border above, since the picture is wide"
    assert small[1:3, 0].min() > 200
    assert small[1:3, 3].max() < 60, "black below the transparent half"


def test_passes_with_dropout_tell_their_disagreement():
    model = classifier(dropout=0.5)
    found = classify(model, drawn(), 8)
    assert "nats are disagreement between 8 passes with dropout" in found.uncertainty
    assert model.mc_samples == 0, "as before"
    model.mc_samples = 8
    x = Preprocessing((4, 4), 1, "pad", (0, 0, 0))
    expected = model.predictive(x.normalize(x.pixels(drawn())[None]))
    assert found.probabilities["left"] == pytest.approx(expected.probabilities[0, 0].item())
    assert f"{expected.mutual_information.item():.2f} nats are disagreement" in found.uncertainty
    assert found.probabilities != classify(model, drawn()).probabilities


def test_a_model_without_dropout_says_that_it_tells_no_uncertainty_of_its_own():
    model = classifier()
    assert not has_dropout(model)
    assert has_dropout(classifier(0.1))
    line = classify(model, drawn()).uncertainty
    assert line.endswith("not calibrated. The model has no dropout, which would tell its own uncertainty.")
    model.temperature.fill_(2.0)
    assert "the probabilities are calibrated (temperature 2.00)." in classify(model, drawn()).uncertainty
    with pytest.raises(UserError, match="passes is 3, but the MLPClassifier has no dropout"):
        classify(model, drawn(), 3)


@pytest.mark.parametrize(("passes", "message"), [(-1, "passes is -1; it must be 0 or more"), (201, "at most 200")])
def test_a_wrong_number_of_passes_is_named(passes, message):
    with pytest.raises(UserError, match=message):
        classify(classifier(0.5), drawn(), passes)


def test_a_picture_of_unknown_range_is_refused():
    with pytest.raises(UserError, match="the picture cannot be read: pixels are floats, of unknown range"):
        classify(classifier(), Image.fromarray(torch.zeros(4, 4).numpy()))
