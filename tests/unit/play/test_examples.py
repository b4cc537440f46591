"""Pictures to begin with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from tests.helpers.networks import mlps
from zoo import GAN, MLPClassifier
from zoo.datamodules import Digits
from zoo.play.drawing import picture_of
from zoo.play.examples import blank, example, is_blank


def test_examples_are_test_pictures_of_the_included_data_with_the_same_classes():
    model = MLPClassifier((1, 8, 8), 10, width=8, depth=1)
    model.trained_on = replace(model.trained_on, class_names=Digits.class_names)
    pixels, labels = Digits().load_split(train=False)
    pictures = [picture_of(x[None].float() / 127.5 - 1) for x in pixels]
    found = [example(model, number) for number in range(3)]
    for one in found:
        (index,) = [i for i, picture in enumerate(pictures) if np.array_equal(picture, one.picture)]
        assert one.label == str(int(labels[index]))
    assert len({one.picture.tobytes() for one in found}) == 3
    assert np.array_equal(example(model, len(pixels)).picture, found[0].picture)


def test_a_model_of_other_data_begins_with_its_own_samples():
    model = GAN((1, 8, 8), 3, **mlps(8), latent_dim=4, conditional=True)
    expected = model.sample(1, labels=torch.tensor([2]), generator=torch.Generator().manual_seed(5))
    found = example(model, 5)
    assert found.label == "2"
    assert np.array_equal(found.picture, picture_of(expected))


def test_a_classifier_of_other_data_has_no_examples():
    assert example(MLPClassifier((1, 8, 8), 3, width=8, depth=1), 0) is None


def test_an_empty_picture_has_the_models_aspect_ratio_and_background():
    model = MLPClassifier((3, 10, 20), 3, width=8, depth=1)
    empty = blank(model, (1, 2, 3), 200)
    assert empty.size == (200, 100)
    assert empty.getpixel((0, 0)) == (1, 2, 3)
    assert is_blank(empty)
    empty.putpixel((3, 4), (1, 2, 4))
    assert not is_blank(empty)
    assert is_blank(Image.new("RGBA", (4, 4)))
