"""The command `sample` with a diffusion model: solver, steps, guidance, labels, films."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from tests.helpers.command import fails
from zoo import GAN, Diffusion
from zoo.cli.main import main
from zoo.datamodules import Digits


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    seed_everything(0, verbose=False)
    small = {"input_shape": (1, 8, 8), "num_classes": 10, "conditional": True}
    models = {"diffusion": Diffusion(**small, widths=(16,), blocks=1), "gan": GAN(**small, width=16)}
    for name, model in models.items():
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", max_steps=40, limit_val_batches=0, enable_model_summary=False, **options)
        trainer.fit(model, datamodule=Digits())
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return {name: str(folder / f"{name}.ckpt") for name in models}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sample(checkpoint: str, *args: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a command."""
    number = len(list(Path().glob("*.npz")))
    main(["sample", "--ckpt_path", checkpoint, f"--out={number}.npz", *args])
    with np.load(f"{number}.npz") as file:
        return file["arr_0"].astype(int), file["arr_1"]


def test_a_sample_is_the_same_however_many_are_drawn(checkpoints, monkeypatch):
    monkeypatch.setattr("zoo.cli.sample.CHUNK", 4)
    few, few_labels = sample(checkpoints["diffusion"], "--n=3")
    many, many_labels = sample(checkpoints["diffusion"], "--n=9")
    assert np.array_equal(few_labels, many_labels[:3])
    assert np.abs(few - many[:3]).max() <= 1, "bytes, rounded"


@pytest.mark.parametrize("option", ["--steps=3", "--solver=ancestral", "--guidance_scale=2"])
def test_an_option_makes_a_difference(checkpoints, option):
    plain, _ = sample(checkpoints["diffusion"], "--n=4")
    other, _ = sample(checkpoints["diffusion"], "--n=4", option)
    assert np.abs(plain - other).max() > 2


def test_labels_are_drawn_in_turn(checkpoints):
    _, labels = sample(checkpoints["diffusion"], "--n=5", "--labels=[3,7]")
    assert labels.tolist() == [3, 7, 3, 7, 3]


def test_the_film_is_of_the_same_samples(checkpoints):
    options = ["--n=4", "--steps=14", "--frames=15", "--out=grid.png", "--trajectory=film.gif"]
    main(["sample", "--ckpt_path", checkpoints["diffusion"], *options])
    with Image.open("film.gif") as film, Image.open("grid.png") as grid:
        assert film.n_frames == 15
        film.seek(14)
        difference = np.asarray(film.convert("L")).astype(int) - np.asarray(grid.convert("L"))
        assert np.abs(difference).mean() < 4, "but for the colours of a film"
        film.seek(0)
        assert np.abs(np.asarray(film.convert("L")).astype(int) - np.asarray(grid.convert("L"))).mean() > 10


def test_a_single_sample_has_no_frame_so_that_it_can_be_edited(checkpoints):
    main(["sample", "--ckpt_path", checkpoints["diffusion"], "--n=1", "--out=one.png"])
    assert Image.open("one.png").size == (32, 32)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("diffusion", ["--solver=rk4"], "solver is 'rk4'; choose one of euler"),
        ("diffusion", ["--steps=0"], "steps is 0"),
        ("diffusion", ["--trajectory=film.mp4"], "film.mp4 must end in .gif"),
        ("diffusion", ["--trajectory=film.gif", "--frames=1"], "--frames is 1"),
        ("diffusion", ["--trajectory=film.gif", "--steps=0"], "steps is 0"),
        ("diffusion", ["--trajectory=film.gif", "--out=other.gif"], "--out other.gif is a film already"),
        ("diffusion", ["--out=film.gif", "--steps=5"], "--steps says nothing to a film"),
        ("diffusion", ["--interpolate=5", "--steps=4"], "--steps and --interpolate do not go together"),
        ("gan", ["--solver=euler"], "--solver says nothing to a GAN"),
        ("gan", ["--guidance_scale=1"], "--guidance_scale says nothing to a GAN"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(checkpoints, model, args, message, capsys):
    assert message in fails(capsys, "sample", "--ckpt_path", checkpoints[model], "--n=4", *args)
    assert not list(Path().iterdir())
