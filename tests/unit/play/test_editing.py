"""Edits of a picture on the page."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.networks import unet
from zoo import Diffusion
from zoo.errors import UserError
from zoo.hub.editing import EditSession
from zoo.play import editing
from zoo.play.editing import Settings, brought_to, painted_pixels, redraw, vary

QUICK = Settings(n=2, steps=3)


@pytest.fixture(scope="module")
def model():
    return Diffusion((1, 4, 4), 3, conditional=True, network=unet(8))


@pytest.fixture
def results(monkeypatch):
    """What is drawn: input and results, (N, 1, 4, 4)."""
    seen = SimpleNamespace(images=None)

    def keep(images):
        seen.images = images
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(editing, "picture_of", keep)
    return seen


def picture(side=40):
    return Image.fromarray(np.linspace(0, 255, side * side).reshape(side, side).astype(np.uint8))


def painted(box, side=40):
    paint = Image.new("RGBA", (side, side))
    paint.paste((255, 0, 0, 255), box)
    return paint


def test_pixels_that_are_painted_on_by_more_than_half_are_redrawn(model):
    mask = painted_pixels(model, painted((0, 0, 16, 20)))
    assert mask.shape == (1, 1, 4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True  # 16 of 20 pixels across: one and more than half of the second
    assert torch.equal(mask[0, 0], expected)
    with pytest.raises(UserError, match="there is nothing to redraw: paint over a part of the picture"):
        painted_pixels(model, painted((0, 0, 4, 10)))


def test_what_is_not_painted_on_stays_to_the_last_bit(model, results):
    drawn = redraw(model, picture(), painted((0, 0, 40, 20)), QUICK)
    before, masked, *after = results.images
    assert torch.equal(before, brought_to(model, picture())[0])
    assert masked[:, :2].eq(0).all() and torch.equal(masked[:, 2:], before[:, 2:])
    assert len(after) == 2
    for result in after:
        assert torch.equal(result[:, 2:], before[:, 2:])
        assert not torch.equal(result[:, :2], before[:, :2])
    assert drawn.description.startswith("50% of the pixels redrawn: 11 network evaluations"), "2 steps of 5, and 1"


def test_variations_are_those_of_the_command_edit(model, results):
    vary(model, picture(), 0.5, Settings("1", 2, 3, seed=7, guidance_scale=0.5))
    session = EditSession(model, brought_to(model, picture()), 2, 3, 7, 1, 0.5, 0.5)
    with torch.no_grad():
        expected = session.vary().after
    assert torch.equal(results.images[1:], expected.float())


def test_a_picture_is_cropped_and_put_on_the_models_background(model):
    wide = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    wide.paste((0, 0, 0, 255), (20, 0, 40, 40))
    x = brought_to(model, wide)
    assert x.shape == (1, 1, 4, 4)
    assert torch.equal(x[0, 0, 0], torch.tensor([-1.0, -1.0, 1.0, 1.0])), "the center, half of it transparent on white"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(n=17), "results is 17; it must be at most 16"),
        (Settings(steps=0), "steps is 0; it must be at least 1"),
        (Settings(seed=-1), "seed is -1; it must be at least 0"),
        (Settings("shoe"), "class is 'shoe'; choose one of 0, 1, 2"),
        (Settings(guidance_scale=float("inf")), "guidance_scale is inf; it must be a finite number"),
    ],
)
def test_a_wrong_setting_is_named(model, settings, message):
    with pytest.raises(UserError, match=message):
        vary(model, picture(), 1.0, settings)


def test_a_strength_below_the_models_lowest_noise_is_named(model):
    with pytest.raises(UserError, match=r"sigma is 0\.0; it must be above the model's sigma_min"):
        vary(model, picture(), 0.0, QUICK)
