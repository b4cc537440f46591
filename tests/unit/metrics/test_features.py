"""The shipped feature extractors, on real data."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.metrics import extractor_for, load_extractor
from zoo.metrics.features import EXTRACTORS

SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10_jpeg": (3, 32, 32)}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_extractor_is_frozen_in_float32_and_has_a_hash(name):
    extractor = load_extractor(name)
    assert extractor.name == name
    assert len(extractor.sha256) == 64
    assert not extractor.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in extractor.parameters())
    x = torch.rand(5, *SHAPES[name]) * 2 - 1
    assert extractor(x).shape == (5, extractor.num_features) == (5, 64)
    assert extractor.logits(x).shape == (5, 10)


def test_the_digits_extractor_classifies_test_digits(digits):
    x, y = digits
    assert (load_extractor("digits").logits(x).argmax(1) == y).float().mean() >= 0.98


def test_the_fashion_extractor_classifies_test_images(fashion_mnist):
    x, y = fashion_mnist
    assert (load_extractor("fashion_mnist").logits(x).argmax(1) == y).float().mean() >= 0.90


def test_features_of_training_images_have_a_mean_variance_of_one():
    data = Digits()
    data.setup()
    variances = load_extractor("digits")(data.split("train")[0]).double().var(dim=0)
    assert variances.mean() == pytest.approx(1.0, rel=1e-2)  # half precision in the file
    assert variances.min() > 1e-3  # no dead feature


def test_features_are_in_float32_also_under_autocast(digits):
    extractor = load_extractor("digits")
    expected = extractor(digits[0])
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor(digits[0])
        logits = extractor.logits(digits[0])
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(features, expected)


def test_images_of_another_size_are_resized_with_antialiasing():
    extractor = load_extractor("digits")
    # Stripes of period 4 that are grey on average. Plain bilinear sampling of every fourth row would read only rows 1
    # and 2 of each period, a white image.
    stripes = torch.tensor([-1.0, 1.0, 1.0, -1.0]).repeat(8)[:, None].expand(1, 1, 32, 32)
    grey, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    distance_to_grey, distance_to_white = ((extractor(stripes) - extractor(x)).norm() for x in (grey, white))
    assert distance_to_grey < 0.3 * distance_to_white


def test_loading_an_extractor_draws_no_random_numbers():
    state = torch.get_rng_state()
    load_extractor("digits")
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_does_not_depend_on_default_dtype_and_device():
    expected = load_extractor("digits").state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            state = load_extractor("digits").state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(state[key], expected[key]) and state[key].dtype == expected[key].dtype for key in expected)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 8, 8), "digits"),
        ((1, 28, 28), "fashion_mnist"),
        ((1, 16, 16), "fashion_mnist"),
        ((3, 32, 32), "cifar10_jpeg"),
        ((3, 8, 8), "cifar10_jpeg"),
    ],
)
def test_the_extractor_for_a_shape_of_images(shape, name):
    extractor = extractor_for(shape)
    assert extractor.name == name
    assert extractor(torch.zeros(2, *shape)).shape == (2, 64)


@pytest.mark.parametrize("damage", ["a flipped bit", "half a file", "no file"])
def test_damaged_weights_are_one_line(damage, tmp_path, monkeypatch):
    path = tmp_path / "weights" / "digits.safetensors"
    path.parent.mkdir()
    data = bytearray((files("zoo") / "weights" / path.name).read_bytes())
    data[-1] ^= 1
    if damage != "no file":
        path.write_bytes(data if damage == "a flipped bit" else data[: len(data) // 2])
    monkeypatch.setattr("zoo.metrics.features.files", lambda package: tmp_path)
    with pytest.raises(
        UserError, match=r"digits\.safetensors (is damaged|cannot be read): .*; install lightning-zoo again"
    ):
        extractor_for((1, 8, 8))


@pytest.mark.parametrize("shape", [(2,), (4, 8, 8), (8, 8), ()])
def test_there_is_no_extractor_for_other_shapes(shape):
    assert extractor_for(shape) is None


def test_an_unknown_extractor_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"'vgg'.*digits, fashion_mnist, cifar10_jpeg, inception"):
        load_extractor("vgg")


def test_a_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\); expected \(N, 1, H, W\)"):
        load_extractor("digits")(torch.zeros(2, 3, 8, 8))
