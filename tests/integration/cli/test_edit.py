"""The command `edit`: what each task writes, and what is said of a mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from tests.helpers.command import fails
from zoo import GAN, Diffusion
from zoo.cli.edit import load_image
from zoo.cli.main import main
from zoo.datamodules import Digits, Points


def trained(folder: Path, name: str, model, data) -> str:
    path = folder / name
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", max_steps=60, enable_model_summary=False, **options)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    seed_everything(0, verbose=False)
    small = {"input_shape": (1, 8, 8), "num_classes": 10}
    return {
        "digits": trained(folder, "a.ckpt", Diffusion(**small, conditional=True, widths=(32,), blocks=1), Digits()),
        "unlabelled": trained(folder, "b.ckpt", Diffusion(**small, widths=(16,), blocks=1), Digits()),
        "points": trained(folder, "c.ckpt", Diffusion(input_shape=(2,), widths=(8,), blocks=1), Points("ring")),
        "gan": trained(folder, "d.ckpt", GAN(**small, width=16), Digits()),
    }


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    """A digit in its own size, the same eight times larger and in colour, and a mask of its left half."""
    monkeypatch.chdir(tmp_path)
    data = Digits()
    data.setup("test")
    digit = data.split("test")[0][0, 0].add(1).mul(127.5).round().byte().numpy()
    Image.fromarray(digit).save("digit.png")
    Image.fromarray(digit.repeat(8, 0).repeat(8, 1)).convert("RGB").save("large.jpg", quality=100)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(digit.reshape(4, 2, 4, 2).mean((1, 3)).round().astype(np.uint8)).save("small.png")


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def edit(checkpoint: str, *args: str) -> None:
    main(["edit", "--ckpt_path", checkpoint, "--image", "digit.png", "--steps=12", *args])


def test_inpainting_keeps_what_the_mask_says_to_the_last_bit(checkpoints, capsys):
    edit(checkpoints["digits"], "--task=inpaint", "--mask=mask.png", "--resamples=3")
    before, after = pixels("digit.png"), pixels("edited.png")
    assert after.shape == (8, 8)
    assert np.array_equal(before[:, :4], after[:, :4])
    assert not np.array_equal(before[:, 4:], after[:, 4:])
    assert "32 pixels of digit.png drawn anew in edited.png" in capsys.readouterr().out


def test_a_box_is_drawn_anew_like_the_mask_of_it(checkpoints):
    edit(checkpoints["digits"], "--task=inpaint", "--mask=mask.png", "--out=a.png")
    edit(checkpoints["digits"], "--task=inpaint", "--box=[4,0,8,8]", "--out=b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_larger_picture_in_colour_is_brought_to_the_models_size(checkpoints):
    edit(checkpoints["digits"], "--task=inpaint", "--mask=mask.png", "--image=large.jpg", "--resamples=1")
    difference = np.abs(pixels("digit.png")[:, :4].astype(int) - pixels("edited.png")[:, :4])
    assert difference.max() <= 3, "of the JPEG file"


def test_variations_differ_from_each_other_and_the_seed_repeats_them(checkpoints):
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        edit(checkpoints["digits"], "--task=vary", "--sigma=1", "--n=4", f"--out={name}", f"--seed={seed}")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_at_full_strength_a_variation_is_the_same_whatever_the_picture_was(checkpoints):
    """Nothing is left of it: not to within a tolerance, but at all."""
    edit(checkpoints["digits"], "--task=vary", "--sigma=80", "--out=a.png")
    edit(checkpoints["digits"], "--task=vary", "--sigma=1000", "--image=mask.png", "--out=b.png")
    edit(checkpoints["digits"], "--task=vary", "--sigma=0.5", "--out=c.png")
    edit(checkpoints["digits"], "--task=vary", "--sigma=0.5", "--image=mask.png", "--out=d.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("c.png"), pixels("d.png"))


def test_a_picture_inverted_and_drawn_again_is_the_same_and_the_error_is_said(checkpoints, capsys):
    edit(checkpoints["digits"], "--task=invert", "--steps=40", "--compare=compare.png")
    out = capsys.readouterr().out
    assert float(out.split("error of ")[1].split()[0]) < 0.05
    assert np.abs(pixels("digit.png").astype(int) - pixels("edited.png")).mean() < 5
    assert Image.open("compare.png").size == (3 * 34 + 2, 36), "the picture, its noise, and the picture again"


def test_another_class_is_another_picture(checkpoints):
    edit(checkpoints["digits"], "--task=class", "--to=3", "--label=0", "--out=a.png")
    edit(checkpoints["digits"], "--task=class", "--to=7", "--label=0", "--out=b.png")
    edit(checkpoints["digits"], "--task=class", "--to=7", "--guidance_scale=2", "--out=c.png")
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("b.png"), pixels("c.png"))


def test_the_way_to_another_picture_has_as_many_as_were_asked_for(checkpoints, capsys):
    edit(checkpoints["digits"], "--task=interpolate", "--other=mask.png", "--n=5", "--compare=way.png")
    assert "5 pictures from digit.png to mask.png" in capsys.readouterr().out
    assert Image.open("edited.png").size == (3 * 34 + 2, 2 * 34 + 2)
    assert Image.open("way.png").size == (7 * 34 + 2, 36), "both ends, and the way"


def test_noise_is_taken_off(checkpoints):
    clean = load_image("digit.png", (1, 8, 8))
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noisy[0, 0].add(1).mul(127.5).round().clamp(0, 255).byte().numpy()).save("noisy.png")
    edit(checkpoints["digits"], "--task=denoise", "--sigma=0.4", "--image=noisy.png", "--n=16", "--compare=compare.png")
    assert Image.open("compare.png").size == (17 * 34 + 2, 36)
    assert Image.open("edited.png").size == (4 * 34 + 2, 4 * 34 + 2)


def test_a_picture_made_larger_shrinks_to_the_small_one(checkpoints):
    edit(checkpoints["digits"], "--task=super_resolve", "--image=small.png", "--resamples=2")
    after = pixels("edited.png").astype(float)
    # Where nothing was cut off at black or white, the means are those of the small one.
    inside = ((after > 0) & (after < 255)).reshape(4, 2, 4, 2).all((1, 3))
    difference = np.abs(after.reshape(4, 2, 4, 2).mean((1, 3)) - pixels("small.png"))
    assert inside.any()
    assert difference[inside].max() <= 1.5


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("digits", ["--task=invent"], "invent"),
        ("digits", ["--task=inpaint"], "the task inpaint needs --mask or --box"),
        ("digits", ["--task=inpaint", "--mask=mask.png", "--box=[0,0,4,4]"], "one of them only"),
        ("digits", ["--task=inpaint", "--box=[0,0,9,8]"], "--box [0, 0, 9, 8] is no left"),
        ("digits", ["--task=inpaint", "--box=[0,1]"], "--box [0, 1] is no left"),
        ("digits", ["--task=inpaint", "--mask=digit.gif"], "digit.gif is not there"),
        ("digits", ["--task=inpaint", "--mask=white.png"], "the mask is white everywhere"),
        ("digits", ["--task=vary"], "the task vary needs --sigma"),
        ("digits", ["--task=vary", "--sigma=1", "--mask=mask.png"], "--mask says nothing to the task vary"),
        ("digits", ["--task=super_resolve", "--sigma=1"], "--sigma says nothing to the task super_resolve"),
        ("digits", ["--task=invert", "--n=4"], "the task invert has one result: leave out --n"),
        ("digits", ["--task=invert", "--out=a.png", "--compare=a.png"], "--out and --compare are both a.png"),
        ("digits", ["--task=vary", "--sigma=0"], "--sigma is 0.0; it must be above"),
        ("digits", ["--task=class"], "the task class needs --to"),
        ("digits", ["--task=class", "--to=12"], "--to 12 is not among the classes 0 to 9"),
        ("unlabelled", ["--task=class", "--to=1"], "trained without labels: leave out --to"),
        ("unlabelled", ["--task=vary", "--sigma=1", "--guidance_scale=1"], "guidance is 1.0, which needs a model"),
        ("digits", ["--task=interpolate"], "the task interpolate needs --other"),
        ("digits", ["--task=interpolate", "--other=mask.png", "--n=2"], "--n is 2; a way"),
        ("digits", ["--task=super_resolve", "--factor=3"], "--factor 3 does not divide"),
        ("digits", ["--task=invert", "--image=text.png"], "text.png is not a picture that can be read"),
        ("digits", ["--task=invert", "--image=missing.png"], "missing.png is not there"),
        ("digits", ["--task=invert", "--out=mask.png"], "mask.png is there already"),
        ("digits", ["--task=invert", "--compare=mask.png"], "mask.png is there already"),
        ("digits", ["--task=invert", "--out=new.jpg"], "new.jpg must end in .png"),
        ("digits", ["--task=invert", "--steps=0"], "--steps is 0"),
        ("points", ["--task=invert"], "draws points, not pictures"),
        ("gan", ["--task=invert"], "holds a GAN; edit needs a diffusion model"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(checkpoints, model, args, message, capsys):
    Path("text.png").write_text("no picture")
    Image.new("L", (8, 8), 255).save("white.png")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    line = fails(capsys, "edit", "--ckpt_path", checkpoints[model], "--image=digit.png", *args)
    assert message in line
    assert {path: path.read_bytes() for path in Path().iterdir()} == before
