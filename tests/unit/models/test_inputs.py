"""Pictures, arrays and tensors as the input of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.datamodules import ImageFolder
from zoo.errors import UserError
from zoo.models.inputs import input_batches
from zoo.pictures.preprocessing import Preprocessing

COLOR = Preprocessing((8, 8), 3)
GREY = Preprocessing((8, 8), 1)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def inputs(samples: object, preprocessing: Preprocessing | None = COLOR, batch_size: int = 4) -> torch.Tensor:
    shape = (3, 8, 8) if preprocessing is None else preprocessing.input_shape
    return torch.cat(list(input_batches(samples, shape, preprocessing, batch_size)))


def test_pictures_reach_the_model_as_in_training(tmp_path):
    for index in range(12):
        Image.fromarray(noise(20 + index, 31, 3)).save(tmp_path / f"{index:02}.png")
    data = ImageFolder(str(tmp_path), image_size=12, fit="pad", background="#102030", test_size=1, val_size=1)
    data.setup("fit")
    paths = [file.path for file in data._split_files(train=True)]
    expected = data.load_split(train=True)[0].float() / 127.5 - 1
    found = inputs(paths, Preprocessing.parse(data.preprocessing))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_same_picture_in_every_form_is_the_same_input(tmp_path):
    pixels = noise(16, 24, 3)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    expected = inputs(image)
    assert expected.shape == (1, 3, 8, 8)
    assert expected.std() > 0.1
    for form in forms:
        assert torch.equal(inputs(form), expected)
        assert torch.equal(inputs([form, form]), expected.repeat(2, 1, 1, 1))
    assert torch.equal(inputs(np.stack([pixels] * 5)), expected.repeat(5, 1, 1, 1))


def test_grey_arrays_and_floats_of_the_models_size():
    grey = noise(8, 8)
    expected = torch.from_numpy(grey).float()[None, None] / 127.5 - 1
    torch.testing.assert_close(inputs(grey, GREY), expected)
    torch.testing.assert_close(inputs(torch.from_numpy(grey)[None], GREY), expected)
    assert torch.equal(inputs(expected, GREY), expected)
    assert torch.equal(inputs(expected[0], GREY), expected)
    assert list(input_batches([], (1, 8, 8), GREY, 4)) == []


def test_points_are_arrays_of_floats():
    points = torch.randn(5, 2)
    found = torch.cat(list(input_batches(points.numpy(), (2,), None, 2)))
    assert torch.equal(found, points)


@pytest.mark.parametrize(
    ("samples", "preprocessing", "message"),
    [
        ("missing.png", COLOR, "missing.png is not a file"),
        (noise(9, 9, 3), None, "does not say how pictures are brought"),
        (noise(9, 9, 3).astype(np.int32), COLOR, "int32"),
        ([noise(9, 9, 5)], COLOR, r"shape \(9, 9, 5\)"),
        (torch.zeros(3, 9, 9), COLOR, r"shape \(3, 9, 9\); the model takes \(3, 8, 8\)"),
        (torch.full((3, 8, 8), 200.0), COLOR, "in .200, 200."),
        ([None], COLOR, "NoneType"),
    ],
)
def test_mistakes_are_one_line(samples, preprocessing, message):
    with pytest.raises(UserError, match=message):
        inputs(samples, preprocessing)


def test_a_broken_file_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png cannot be read: not an image"):
        inputs(tmp_path / "broken.png")


def test_floats_of_the_models_size_are_passed_on_in_whole_batches():
    x = torch.rand(10, 3, 8, 8)
    parts = list(input_batches(x, (3, 8, 8), None, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert all(part.data_ptr() == x[4 * i].data_ptr() for i, part in enumerate(parts)), "not copied"
    with pytest.raises(UserError, match=r"shape \(3, 9, 9\); the model takes \(3, 8, 8\)"):
        next(input_batches(torch.rand(10, 3, 9, 9), (3, 8, 8), None, 4))
