"""The command `edit`: what each task writes, and the messages for mistakes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.command import fails, tree
from tests.helpers.pictures import png_of
from zoo.cli.main import main
from zoo.datamodules import Digits
from zoo.hub.editing import load_image

pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "pictures")


@pytest.fixture
def pictures(in_an_empty_folder):
    """A digit in its own size, the same eight times larger and in colour, one half as large; a mask of its right."""
    data = Digits()
    data.setup("test")
    digit = data.split("test")[0][0, 0].add(1).mul(127.5).round().byte().numpy()
    Image.fromarray(digit).save("digit.png")
    Image.fromarray(digit.repeat(8, 0).repeat(8, 1)).convert("RGB").save("large.jpg", quality=100)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(digit.reshape(4, 2, 4, 2).mean((1, 3)).round().astype(np.uint8)).save("small.png")


@pytest.fixture
def edit(checkpoint) -> Callable[..., None]:
    """Function that edits digit.png with a class-conditional diffusion model."""

    def run(*args: str) -> None:
        main(["edit", "--ckpt_path", checkpoint("diffusion"), "--image", "digit.png", "--steps=12", *args])

    return run


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def test_inpainting_redraws_what_is_white_in_the_mask_and_keeps_the_rest_to_the_last_bit(edit, capsys):
    edit("--mask=mask.png", "--resamples=3")
    before, after = pixels("digit.png"), pixels("edited.png")
    assert after.shape == (8, 8)
    assert np.array_equal(before[:, :4], after[:, :4])
    assert not np.array_equal(before[:, 4:], after[:, 4:])
    assert "50.0% of the pixels of digit.png redrawn in edited.png" in capsys.readouterr().out


def test_a_box_is_redrawn_like_the_mask_of_it(edit):
    edit("--task=inpaint", "--mask=mask.png", "--out=a.png")
    edit("--box=[4,0,8,8]", "--out=b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_larger_image_in_colour_is_resized_to_the_models_size(edit):
    edit("--task=inpaint", "--mask=mask.png", "--image=large.jpg", "--resamples=1")
    difference = np.abs(pixels("digit.png")[:, :4].astype(int) - pixels("edited.png")[:, :4])
    assert difference.max() <= 3, "the error of JPEG"


def test_variations_differ_from_each_other_and_the_seed_repeats_them(edit):
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        edit("--task=vary", "--sigma=1", "--n=4", f"--out={name}", f"--seed={seed}")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_at_full_strength_a_variation_does_not_depend_on_the_image(edit):
    """Exactly, not only within a tolerance."""
    edit("--task=vary", "--sigma=80", "--out=a.png")
    edit("--task=vary", "--sigma=1000", "--image=mask.png", "--out=b.png")
    edit("--task=vary", "--sigma=0.5", "--out=c.png")
    edit("--task=vary", "--sigma=0.5", "--image=mask.png", "--out=d.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("c.png"), pixels("d.png"))


def test_an_inverted_image_is_generated_again_and_the_error_is_reported(edit, capsys):
    edit("--task=invert", "--steps=40", "--compare=compare.png")
    out = capsys.readouterr().out
    assert float(out.split("root mean square error of ")[1].split()[0]) < 0.05
    assert np.abs(pixels("digit.png").astype(int) - pixels("edited.png")).mean() < 5
    assert Image.open("compare.png").size == (3 * 34 + 2, 36), "the image, its noise, and the image again"


def test_the_target_class_and_the_guidance_change_the_result(edit):
    edit("--task=class", "--to=3", "--label=0", "--out=a.png")
    edit("--task=class", "--to=7", "--label=0", "--out=b.png")
    edit("--task=class", "--to=7", "--guidance_scale=2", "--out=c.png")
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("b.png"), pixels("c.png"))


def test_an_interpolation_has_as_many_images_as_asked_for(edit, capsys):
    edit("--task=interpolate", "--other=mask.png", "--n=5", "--compare=path.png")
    assert "5 images from digit.png to mask.png" in capsys.readouterr().out
    assert Image.open("edited.png").size == (3 * 34 + 2, 2 * 34 + 2)
    assert Image.open("path.png").size == (7 * 34 + 2, 36), "both ends, and the path"


def test_noise_is_removed_from_an_image_in_several_samples(edit):
    clean = load_image("digit.png", (1, 8, 8))
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noisy[0, 0].add(1).mul(127.5).round().clamp(0, 255).byte().numpy()).save("noisy.png")
    edit("--task=denoise", "--sigma=0.4", "--image=noisy.png", "--n=16", "--compare=compare.png")
    assert Image.open("compare.png").size == (17 * 34 + 2, 36)
    assert Image.open("edited.png").size == (4 * 34 + 2, 4 * 34 + 2)


def test_a_super_resolved_image_averages_to_the_small_one(edit):
    edit("--task=super_resolve", "--image=small.png", "--resamples=2")
    after = pixels("edited.png").astype(float)
    # Where nothing was clipped at black or white, the means are those of the small image.
    inside = ((after > 0) & (after < 255)).reshape(4, 2, 4, 2).all((1, 3))
    difference = np.abs(after.reshape(4, 2, 4, 2).mean((1, 3)) - pixels("small.png"))
    assert inside.any()
    assert difference[inside].max() <= 1.5


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("diffusion", ["--task=invent"], "invent"),
        ("diffusion", [], "--task is missing; choose one of inpaint, vary, class"),
        ("diffusion", ["--task=inpaint"], "the task inpaint needs either --mask or --box"),
        (
            "diffusion",
            ["--task=inpaint", "--mask=mask.png", "--box=[0,0,4,4]"],
            "the task inpaint needs either --mask or --box",
        ),
        (
            "diffusion",
            ["--task=inpaint", "--box=[0,0,9,8]"],
            "--box [0, 0, 9, 8] is not a left, top, right and bottom within the model's images of 8x8 pixels",
        ),
        ("diffusion", ["--task=inpaint", "--box=[0,1]"], "--box [0, 1] is not a left"),
        ("diffusion", ["--task=inpaint", "--mask=digit.gif"], "digit.gif cannot be read: No such file"),
        ("diffusion", ["--mask=black.png"], "there is nothing to redraw: black.png is black everywhere"),
        ("diffusion", ["--task=vary"], "the task vary needs --sigma"),
        (
            "diffusion",
            ["--task=vary", "--sigma=1", "--mask=mask.png"],
            "--mask has no effect on the task vary: leave it out",
        ),
        (
            "diffusion",
            ["--task=super_resolve", "--sigma=1"],
            "--sigma has no effect on the task super_resolve: leave it out",
        ),
        ("diffusion", ["--task=invert", "--n=4"], "the task invert has one result: leave out --n"),
        ("diffusion", ["--task=invert", "--out=a.png", "--compare=a.png"], "--out and --compare are both a.png"),
        ("diffusion", ["--task=vary", "--sigma=0"], "--sigma is 0.0; it must be above"),
        ("diffusion", ["--task=class"], "the task class needs --to"),
        ("diffusion", ["--task=class", "--to=12"], "--to 12 is not among the classes 0 to 9"),
        ("unconditional_diffusion", ["--task=class", "--to=1"], "trained without labels: leave out --to"),
        (
            "unconditional_diffusion",
            ["--task=vary", "--sigma=1", "--guidance_scale=1"],
            "guidance_scale is 1.0, which needs a model",
        ),
        ("diffusion", ["--task=interpolate"], "the task interpolate needs --other"),
        (
            "diffusion",
            ["--task=interpolate", "--other=mask.png", "--n=2"],
            "--n is 2; the path from one image to another needs at least 3",
        ),
        ("diffusion", ["--task=super_resolve", "--factor=3"], "--factor 3 does not divide"),
        ("diffusion", ["--task=invert", "--image=text.png"], "text.png cannot be read: not an image"),
        (
            "diffusion",
            ["--task=invert", "--image=missing.png"],
            "missing.png cannot be read: No such file",
        ),
        ("diffusion", ["--task=invert", "--image=pipe"], "pipe cannot be read: a folder, a pipe or a device"),
        ("diffusion", ["--task=invert", "--image=large.eps"], "large.eps cannot be read: not an image"),
        ("diffusion", ["--task=invert", "--image=bomb.png"], "bomb.png cannot be read: more than 89,478,485 pixels"),
        ("diffusion", ["--task=inpaint", "--mask=larger.png"], "larger.png cannot be read: more than 89,478,485 pix"),
        ("diffusion", ["--task=invert", "--out=mask.png"], "mask.png exists already; choose another name"),
        ("diffusion", ["--task=invert", "--compare=mask.png"], "mask.png exists already; choose another name"),
        ("diffusion", ["--task=invert", "--out=new.jpg"], "new.jpg must end in .png"),
        ("diffusion", ["--task=invert", "--steps=0"], "--steps is 0"),
        ("points_diffusion", ["--task=invert"], "is a model of points, not of images"),
        ("gan", ["--task=invert"], "holds a GAN; edit needs a diffusion model"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(
    checkpoint, model, args, message, capsys, monkeypatch
):
    Path("text.png").write_text("no picture")
    Image.new("L", (8, 8)).save("black.png")
    Image.new("L", (8, 8)).save("large.eps")
    Path("bomb.png").write_bytes(png_of(50_000))
    Path("larger.png").write_bytes(png_of(10_000))  # Pillow warns only
    os.mkfifo("pipe")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript is called"))
    before = tree(Path())
    line = fails(capsys, "edit", "--ckpt_path", checkpoint(model), "--image=digit.png", *args)
    assert message in line
    assert tree(Path()) == before
