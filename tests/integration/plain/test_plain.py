"""The files in plain/ train what the recipes train: after a few steps all parameters are equal, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn

from zoo.cli.fit import run_trainer
from zoo.models.diffusion.solvers import dpmpp_2m, karras_sigmas

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def recipe(name: str, steps: int, *options: str) -> LightningModule:
    """The model of a recipe after some steps on the CPU, without the recipe's callbacks."""
    trainer = [
        "--trainer.accelerator=cpu", f"--trainer.max_steps={steps}", "--trainer.callbacks=null",
        "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false",
        "--trainer.num_sanity_val_steps=0",
    ]  # fmt: skip
    return run_trainer(["fit", "--config", f"{name}.yaml", *trainer, *options]).model


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str, int], Any]:
    """Function that imports a file of plain/, and gives it and a data module of the zoo the first images of their data.

    20 of them are held out for validation.
    """

    def load(name: str, data: str, count: int) -> Any:
        plain, zoo = import_module(f"plain.{name}"), import_module(f"zoo.datamodules.{data}")
        with np.load(zoo.FILE) as file:
            np.savez(tmp_path / "few.npz", **{key: file[key][:count] for key in file.files})
        monkeypatch.setattr(zoo, "FILE", tmp_path / "few.npz")
        monkeypatch.setattr(plain, "DATA", tmp_path / "few.npz")
        monkeypatch.setattr(plain, "VALIDATION", 20)
        return plain

    return load


def check_equal(ours: nn.Module, theirs: nn.Module) -> None:
    """Fails unless both have the same parameters, and statistics of batch normalization, in the same order."""
    for kind in ("parameters", "buffers"):
        pairs = zip(getattr(ours, kind)(), getattr(theirs, kind)(), strict=True)
        different = [index for index, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
        assert not different, kind


def test_gan(few_images):
    plain = few_images("gan", "fashion_subset", 120)
    steps, batch_size, width = 6, 24, 2  # two epochs, the first of four batches
    options = ["--data.val_size=20", f"--data.batch_size={batch_size}"]
    for role in ("generator", "discriminator"):
        options += [f"--model.{role}=Conv{role.capitalize()}", f"--model.{role}.width={width}"]
    model = recipe("gan", steps, *options)
    networks = plain.train(steps, batch_size, width)
    for theirs, ours in zip((model.generator, model.discriminator, model.ema.network), networks, strict=True):
        check_equal(ours, theirs)


def test_diffusion(few_images):
    plain = few_images("diffusion", "digits", 297 + 40)
    steps, batch_size, width = 6, 200, 8  # two epochs, the first of four batches
    options = ["--data.val_size=20", f"--data.batch_size={batch_size}", f"--model.network.widths=[{width}]"]
    model = recipe("diffusion", steps, *options)
    denoiser, average = plain.train(steps, batch_size, width)
    check_equal(denoiser, model.denoiser)
    check_equal(average, model.ema.network)


def test_the_diffusion_file_samples_as_the_solver_of_the_zoo():
    plain = import_module("plain.diffusion")
    torch.manual_seed(0)
    denoiser = plain.Denoiser(8, torch.rand(1, 8, 8) - 0.5, torch.tensor(0.5))
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    labels, noise = torch.arange(4), torch.randn(4, 1, 8, 8)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        with torch.no_grad():
            return denoiser(x.float(), torch.full((4,), sigma), labels).double()

    x = (denoiser.mean + 80 * noise).double()
    *_, expected = dpmpp_2m(denoise, x, karras_sigmas(8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, device=None: noise)
        samples = plain.sample(denoiser, labels)
    torch.testing.assert_close(samples, expected.float().clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gan", "diffusion"])
def test_pictures_are_png_files(name):
    images = torch.linspace(-1, 1, 6 * 4 * 5).view(6, 1, 4, 5)
    import_module(f"plain.{name}").write_png("grid.png", images, columns=3)
    with Image.open("grid.png") as file:
        pixels = torch.from_numpy(np.array(file)).float().div(127.5).sub(1)
    expected = torch.cat([torch.cat(list(row[:, 0]), dim=1) for row in images.split(3)])
    torch.testing.assert_close(pixels, expected, atol=1 / 255 + 1e-6, rtol=0)


def test_mlp(few_images):
    plain = few_images("mlp", "fashion_subset", 120)
    steps, batch_size, width = 6, 24, 16  # two epochs, the first of four batches
    model = recipe("mlp", steps, "--data.val_size=20", f"--data.batch_size={batch_size}", f"--model.width={width}")
    check_equal(plain.train(steps, batch_size, width), model.network)


def test_resnet(few_images):
    plain = few_images("resnet", "fashion_subset", 120)
    steps, batch_size, width = 6, 24, 4  # two epochs, the first of four batches
    options = ["--data.val_size=20", f"--data.batch_size={batch_size}", "--model.widths=[4, 8, 16]"]
    model = recipe("resnet", steps, *options)
    network, average = plain.train(steps, batch_size, width)
    check_equal(network, model.network)
    check_equal(average, model.ema.network)


def test_transformer(monkeypatch, tmp_path):
    for name in ("first.py", "second.py"):
        (tmp_path / "text" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_text("".join(chr(97 + index * index % 23) for index in range(400)) + "µ" * 100)
    plain = import_module("plain.transformer")
    monkeypatch.setattr(plain, "FOLDER", tmp_path / "text")
    monkeypatch.setattr(plain, "CONTEXT", 16)
    steps, batch_size, width = 6, 16, 16  # two epochs, the first of four batches
    options = [f"--data.path={tmp_path / 'text'}", "--data.context_length=16", f"--data.batch_size={batch_size}"]
    model = recipe("transformer", steps, *options, f"--model.width={width}")
    check_equal(plain.train(steps, batch_size, width), model.network)
