"""The command `sample` with a diffusion model: solver, steps, guidance, labels, animations."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.helpers.command import fails
from zoo.cli.main import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def sample(checkpoint) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Function that samples from a class-conditional model and returns images and labels."""

    def run(*args: str) -> tuple[np.ndarray, np.ndarray]:
        number = len(list(Path().glob("*.npz")))
        main(["sample", "--ckpt_path", checkpoint("diffusion"), f"--out={number}.npz", *args])
        with np.load(f"{number}.npz") as file:
            return file["arr_0"].astype(int), file["arr_1"]

    return run


def test_a_sample_is_the_same_however_many_are_drawn(sample, monkeypatch):
    monkeypatch.setattr("zoo.cli.sample.CHUNK", 4)
    few, few_labels = sample("--n=3")
    many, many_labels = sample("--n=9")
    assert np.array_equal(few_labels, many_labels[:3])
    assert np.abs(few - many[:3]).max() <= 1, "bytes, rounded"


@pytest.mark.parametrize("option", ["--steps=3", "--solver=ancestral", "--guidance_scale=2"])
def test_an_option_makes_a_difference(sample, option):
    plain, _ = sample("--n=4")
    other, _ = sample("--n=4", option)
    assert np.abs(plain - other).max() > 2


def test_labels_are_drawn_in_turn(sample):
    _, labels = sample("--n=5", "--labels=[3,7]")
    assert labels.tolist() == [3, 7, 3, 7, 3]


def test_the_animation_ends_in_the_samples_of_the_grid(checkpoint):
    options = ["--n=4", "--steps=14", "--frames=15", "--out=grid.png", "--trajectory=film.gif"]
    main(["sample", "--ckpt_path", checkpoint("diffusion"), *options])
    with Image.open("film.gif") as film, Image.open("grid.png") as grid:
        frames = [(frame.info["duration"], np.asarray(frame.convert("L"))) for frame in ImageSequence.Iterator(film)]
        end = np.asarray(grid.convert("L")).astype(int)
    # Frames that are the same to the pixel, as the last two can be, are one frame of twice the duration.
    assert sum(duration for duration, _ in frames) == 15 * 80
    assert np.abs(frames[-1][1] - end).mean() < 4, "up to the palette of a GIF"
    assert np.abs(frames[0][1] - end).mean() > 10


def test_a_single_sample_has_no_border_so_that_it_can_be_edited(checkpoint):
    main(["sample", "--ckpt_path", checkpoint("diffusion"), "--n=1", "--out=one.png"])
    assert Image.open("one.png").size == (32, 32)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("diffusion", ["--solver=rk4"], "solver is 'rk4'; choose one of euler"),
        ("diffusion", ["--steps=0"], "steps is 0"),
        ("diffusion", ["--trajectory=film.mp4"], "film.mp4 must end in .gif"),
        ("diffusion", ["--trajectory=film.gif", "--frames=1"], "--frames is 1"),
        ("diffusion", ["--trajectory=film.gif", "--steps=0"], "steps is 0"),
        ("diffusion", ["--trajectory=film.gif", "--out=other.gif"], "--out other.gif is an animation already"),
        ("diffusion", ["--out=film.gif", "--steps=5"], "--steps has no effect on an animation"),
        ("diffusion", ["--frames=5"], "--frames has no effect without an animation: give --trajectory"),
        (
            "diffusion",
            ["--trajectory=film.gif", "--interpolate=5"],
            "--trajectory cannot be combined with --interpolate",
        ),
        ("diffusion", ["--stepz=5"], "--stepz has no effect on a Diffusion; did you mean --steps?"),
        ("diffusion", ["--interpolate=5", "--steps=4"], "--steps cannot be combined with --interpolate"),
        ("gan", ["--solver=euler"], "--solver has no effect on a GAN"),
        ("gan", ["--guidance_scale=1"], "--guidance_scale has no effect on a GAN"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(checkpoint, model, args, message, capsys):
    assert message in fails(capsys, "sample", "--ckpt_path", checkpoint(model), "--n=4", *args)
    assert not list(Path().iterdir())
