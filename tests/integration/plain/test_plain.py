"""The files in plain/ train what the recipes train: after a few steps all parameters are equal, to the bit."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from tests.helpers.command import CHECKOUT
from zoo.cli.fit import run_trainer
from zoo.datamodules import Digits, FashionMNISTSubset, Sequences
from zoo.models.diffusion.solvers import dpmpp_2m, karras_sigmas

FOLDER = CHECKOUT / "plain"
#: Constants of each file, and the options of its recipe that have the same values.
MODEL, DATA, TRAINER = "model.init_args", "data.init_args", "trainer"
OPTIMIZER, SCHEDULE = f"{MODEL}.optimizer.init_args", f"{MODEL}.lr_scheduler.init_args"
CONSTANTS = {
    "gan": {
        "STEPS": f"{TRAINER}.max_steps",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "LATENT": f"{MODEL}.latent_dim",
        "LEARNING_RATE": f"{MODEL}.optimizer_g.init_args.lr",
        "GAMMA": f"{MODEL}.penalty_weight",
        "PENALTY_INTERVAL": f"{MODEL}.penalty_interval",
        "HALF_LIFE": f"{MODEL}.ema_half_life",
    },
    "diffusion": {
        "STEPS": f"{TRAINER}.max_steps",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "REPEATS": f"{DATA}.repeats",
        "BLOCKS": f"{MODEL}.network.init_args.blocks",
        "LEARNING_RATE": f"{OPTIMIZER}.lr",
        "WEIGHT_DECAY": f"{OPTIMIZER}.weight_decay",
        "WARMUP": f"{SCHEDULE}.warmup_steps",
        "HALF_LIFE": f"{MODEL}.ema_half_life",
        "SAMPLING_STEPS": f"{MODEL}.steps",
    },
    "mlp": {
        "EPOCHS": f"{TRAINER}.max_epochs",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "WIDTH": f"{MODEL}.width",
        "DEPTH": f"{MODEL}.depth",
        "LEARNING_RATE": f"{OPTIMIZER}.lr",
        "WEIGHT_DECAY": f"{OPTIMIZER}.weight_decay",
        "WARMUP": f"{SCHEDULE}.warmup_steps",
    },
    "resnet": {
        "EPOCHS": f"{TRAINER}.max_epochs",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "LEARNING_RATE": f"{OPTIMIZER}.lr",
        "WEIGHT_DECAY": f"{OPTIMIZER}.weight_decay",
        "WARMUP": f"{SCHEDULE}.warmup_steps",
        "HALF_LIFE": f"{MODEL}.ema_half_life",
        "SMALL": f"{MODEL}.low_resolution",
    },
    "transformer": {
        "STEPS": f"{TRAINER}.max_steps",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "CONTEXT": f"{DATA}.context_length",
        "LAYERS": f"{MODEL}.layers",
        "WIDTH": f"{MODEL}.width",
        "HEADS": f"{MODEL}.heads",
        "LEARNING_RATE": f"{OPTIMIZER}.lr",
        "WEIGHT_DECAY": f"{OPTIMIZER}.weight_decay",
        "WARMUP": f"{SCHEDULE}.warmup_steps",
        "CLIP": f"{TRAINER}.gradient_clip_val",
    },
    "vit": {
        "EPOCHS": f"{TRAINER}.max_epochs",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "PATCH": f"{MODEL}.patch_size",
        "LAYERS": f"{MODEL}.layers",
        "WIDTH": f"{MODEL}.width",
        "HEADS": f"{MODEL}.heads",
        "LEARNING_RATE": f"{OPTIMIZER}.lr",
        "WEIGHT_DECAY": f"{OPTIMIZER}.weight_decay",
        "WARMUP": f"{SCHEDULE}.warmup_steps",
        "CLIP": f"{TRAINER}.gradient_clip_val",
        "HALF_LIFE": f"{MODEL}.ema_half_life",
    },
    "seq2seq": {
        "STEPS": f"{TRAINER}.max_steps",
        "BATCH_SIZE": f"{DATA}.batch_size",
        "DIGITS": f"{DATA}.digits",
        "LAYERS": f"{MODEL}.layers",
        "WIDTH": f"{MODEL}.width",
        "HEADS": f"{MODEL}.heads",
        "LEARNING_RATE": f"{OPTIMIZER}.lr",
        "EPS": f"{OPTIMIZER}.eps",
        "WARMUP": f"{SCHEDULE}.warmup_steps",
        "CLIP": f"{TRAINER}.gradient_clip_val",
    },
}

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
        there = [tensor for tensor in getattr(theirs, kind)() if tensor.dtype != torch.bool]  # not flags: `whitened`
        pairs = zip(getattr(ours, kind)(), there, strict=True)
        different = [index for index, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
        assert not different, kind


def test_every_file_has_a_test_and_constants_here():
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files == set(CONSTANTS)
    assert files <= {name.removeprefix("test_") for name in globals()}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_file_is_short_and_needs_torch_and_numpy_only(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    imported = re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)
    assert {module for module in imported if module not in sys.stdlib_module_names} <= {"torch", "numpy"}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_those_of_the_recipe(name):
    """The short runs below have other sizes, and cannot see a half-life that is longer than they are."""
    plain = import_module(f"plain.{name}")
    options = yaml.safe_load((CHECKOUT / "zoo" / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    for constant, path in CONSTANTS[name].items():
        assert getattr(plain, constant) == reduce(getitem, path.split("."), options), constant


@pytest.mark.parametrize("name", ["gan", "diffusion", "mlp", "resnet", "vit"])
def test_training_images_are_those_of_the_data_module(name):
    plain = import_module(f"plain.{name}")
    x, y = plain.training_data() if hasattr(plain, "training_data") else plain.load_data()[0]
    data = Digits() if name == "diffusion" else FashionMNISTSubset()
    data.setup("fit")
    images, labels = data.split("train")
    assert torch.equal(plain.to_floats(x) if name == "resnet" else x, images.view_as(x))
    assert torch.equal(y, labels)


def test_numbers_of_sequences_are_those_of_the_data_module():
    plain, data = import_module("plain.seq2seq"), Sequences()
    assert (data.num_train, data.num_test, data.val_size) == (plain.TRAIN, plain.TEST, plain.VALIDATION)


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
    (tmp_path / "text").mkdir()
    text = "".join(chr(97 + index * index % 23) for index in range(400)) + "µ" * 100
    for name in ("first.py", "second.py"):
        (tmp_path / "text" / name).write_text(text, encoding="utf-8")
    plain = import_module("plain.transformer")
    monkeypatch.setattr(plain, "FOLDER", tmp_path / "text")
    monkeypatch.setattr(plain, "CONTEXT", 16)
    steps, batch_size, width = 6, 16, 16  # two epochs, the first of four batches
    options = [f"--data.path={tmp_path / 'text'}", "--data.context_length=16", f"--data.batch_size={batch_size}"]
    model = recipe("transformer", steps, *options, f"--model.width={width}")
    network = plain.train(steps, batch_size, width)
    check_equal(network, model.network)
    (metrics,) = Trainer(accelerator="cpu", logger=False).validate(model, model.trainer.datamodule, verbose=False)
    assert plain.evaluate(network, plain.load_text()[1]) == pytest.approx(metrics["val/loss"], rel=1e-6)
    assert len(plain.generate(network, 20, "cpu").encode()) >= 20


def test_vit(few_images):
    plain = few_images("vit", "fashion_subset", 120)
    steps, batch_size, width = 6, 24, 12  # two epochs, the first of four batches
    options = ["--data.val_size=20", f"--data.batch_size={batch_size}", f"--model.width={width}"]
    model = recipe("vit", steps, *options)
    network, average = plain.train(steps, batch_size, width)
    check_equal(network, model.network)
    check_equal(average, model.ema.network)


def test_seq2seq(monkeypatch):
    plain = import_module("plain.seq2seq")
    for name, count in {"TRAIN": 120, "TEST": 10, "VALIDATION": 20}.items():
        monkeypatch.setattr(plain, name, count)
    steps, batch_size, width = 6, 24, 16  # two epochs, the first of four batches
    options = ["--data.num_train=120", "--data.num_test=10", "--data.val_size=20", f"--data.batch_size={batch_size}"]
    model = recipe("seq2seq", steps, *options, f"--model.width={width}")
    network = plain.train(steps, batch_size, width)
    check_equal(network, model.network)
    source, _ = plain.load_data()[1]
    assert torch.equal(plain.translate(network, source), model.greedy_decode(source))
