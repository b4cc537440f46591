"""Models, data and Trainers of the shipped recipes, built without the command line's parser."""

from __future__ import annotations

import random
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from benchmarks.gpu_day.results import Options
from zoo.datamodules import CIFAR10, Augment, FashionMNIST, FashionMNISTSubset, ImageFolder, InMemoryDataModule, Text
from zoo.registry import find_class, recipe_files
from zoo.testing.runs import linked, quiet

#: A recipe of every model.
RECIPES = {
    "GAN": "gan.yaml",
    "Diffusion": "diffusion.yaml",
    "ConsistencyModel": "consistency.yaml",
    "MLPClassifier": "mlp.yaml",
    "ResNetClassifier": "resnet20.yaml",
    "ViTClassifier": "vit.yaml",
    "TransformerLM": "shakespeare.yaml",
    "Seq2Seq": "seq2seq.yaml",
}
#: Options of the smallest models, for rehearsals.
TINY_MODELS: dict[str, dict[str, Any]] = {
    "GAN": {
        "generator": {"class_path": "MLPGenerator", "init_args": {"width": 8}},
        "discriminator": {"class_path": "MLPDiscriminator", "init_args": {"width": 8}},
    },
    "Diffusion": {"network": {"class_path": "UNet", "init_args": {"widths": [8], "blocks": 1}}, "steps": 2},
    "MLPClassifier": {"width": 8, "depth": 1},
    "ResNetClassifier": {"depth": 8, "widths": [4, 4, 4]},
    "ViTClassifier": {"layers": 1, "width": 8, "heads": 1},
    "TransformerLM": {"layers": 1, "width": 8, "heads": 1},
    "Seq2Seq": {"layers": 1, "width": 8, "heads": 1},
}
TINY_BATCH = {"batch_size": 8, "eval_batch_size": 16}
TINY_SEQUENCES = {"digits": 3, "num_train": 200, "num_test": 20, "val_size": 20}
#: Shape, number of training and of test images of the datasets that synthetic images stand in for.
SIZES = {"FashionMNISTSubset": ((1, 28, 28), 12_000, 2_000), "CIFAR10": ((3, 32, 32), 50_000, 10_000)}


class SyntheticImages(InMemoryDataModule):
    """Random images, each with a bright row by its class, so that a classifier can learn them.

    Args:
        shape: shape of an image.
        num_train: number of training images.
        num_test: number of test images.
        **options: options of `InMemoryDataModule`.
    """

    num_classes, class_names = 10, tuple("0123456789")

    def __init__(self, shape: tuple[int, ...], num_train: int, num_test: int, **options: Any) -> None:
        super().__init__(**options)
        self.input_shape, self.num_train, self.num_test = shape, num_train, num_test

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        n, generator = self.num_train if train else self.num_test, torch.Generator().manual_seed(int(train))
        x = torch.randint(128, (n, *self.input_shape), dtype=torch.uint8, generator=generator)
        y = torch.randint(10, (n,), generator=generator)
        x[torch.arange(n), :, y] += 127
        return x, y


def read_recipe(name: str) -> dict[str, Any]:
    """Configuration of a shipped recipe."""
    return yaml.safe_load(recipe_files()[name].read_text(encoding="utf-8"))


def resolve(path: str) -> Any:
    """A class by its import path, or by its short name in the zoo or among Lightning's callbacks."""
    module, _, name = path.rpartition(".")
    if module:
        return getattr(import_module(module), name)
    callbacks = import_module("lightning.pytorch.callbacks")
    return getattr(callbacks, name) if hasattr(callbacks, name) else find_class(name)


def as_factory(value: Any) -> Any:
    """A class with its arguments as a factory, as models take optimizers, schedules and networks; else the value."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args", {})
        return partial(resolve(value["class_path"]), **{name: as_factory(given) for name, given in arguments.items()})
    return value


def changed(recipe: str, argument: str, **arguments: Any) -> dict[str, Any]:
    """An argument of a recipe's model that names a class, with other arguments of this class; None removes one."""
    spec = read_recipe(recipe)["model"]["init_args"][argument]
    merged = {name: value for name, value in {**spec["init_args"], **arguments}.items() if value is not None}
    return {argument: {**spec, "init_args": merged}}


class Setup(NamedTuple):
    """A recipe whose model and data can be built any number of times.

    Attributes:
        recipe: configuration.
        model: class of the model with the recipe's arguments, but for those that come from the data.
        data: function that builds the data module.
        source: what the data is, in words.
    """

    recipe: dict[str, Any]
    model: Callable[..., LightningModule]
    data: Callable[[], Any]
    source: str

    def build(self, seed: int = 0) -> tuple[LightningModule, Any]:
        """A new model, with weights drawn by a seed, and its data."""
        torch.manual_seed(seed)
        data = self.data()
        return self.model(**linked(self.model, data, {})), data

    def trainer(self, options: Options, folder: str | Path, **given: Any) -> Trainer:
        """A Trainer with the recipe's clipping and period of logging that shows nothing."""
        spec = self.recipe["trainer"]
        own = {name: spec[name] for name in ("gradient_clip_val", "log_every_n_steps") if name in spec}
        quiet_options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        defaults: dict[str, Any] = {
            "accelerator": options.accelerator,
            "devices": 1,
            "num_sanity_val_steps": 0,
            **quiet_options,
        }
        defaults |= {"enable_model_summary": False, "default_root_dir": str(folder), **own, **given}
        with quiet():
            return Trainer(**defaults)

    def callbacks(self) -> list[Any]:
        """The recipe's callbacks."""
        specs = self.recipe["trainer"]["callbacks"]
        return [resolve(spec["class_path"])(**spec.get("init_args", {})) for spec in specs]


def set_up(
    recipe: str,
    options: Options,
    model: Mapping[str, Any] = {},
    data: Mapping[str, Any] = {},
    unpack: bool = False,
) -> Setup:
    """Reads a recipe.

    Args:
        recipe: name of its file.
        options: device, size and data.
        model: arguments of the model that differ from the recipe's, in the recipe's form.
        data: arguments of the data module that differ.
        unpack: read CIFAR-10 from JPEG files too, which takes a minute.
    """
    spec = read_recipe(recipe)
    kind = spec["model"]["class_path"]
    arguments = {**spec["model"]["init_args"], **(TINY_MODELS.get(kind, {}) if options.tiny else {}), **model}
    if kind == "ConsistencyModel":
        arguments["teacher"] = teacher(options)
    built = {name: as_factory(value) for name, value in arguments.items()}
    make, source = find_data(spec["data"], options, data, unpack)
    return Setup(spec, partial(find_class(kind, "models"), **built), make, source)


@cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Folder for what this process writes and nobody needs later."""
    return tempfile.TemporaryDirectory(prefix="gpu_day")


@cache
def teacher(options: Options) -> str:
    """Path to the checkpoint of the diffusion model's recipe after one step."""
    folder = Path(scratch().name)
    setup = set_up("diffusion.yaml", options)
    model, data = setup.build()
    trainer = setup.trainer(options, folder, max_steps=1, limit_val_batches=0)
    with quiet():
        trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "teacher.ckpt")
    return str(folder / "teacher.ckpt")


def find_data(
    spec: Mapping[str, Any], options: Options, given: Mapping[str, Any], unpack: bool
) -> tuple[Callable[[], LightningDataModule], str]:
    """Function that builds a recipe's data, from the folder of real data where it is there, and what it is."""
    name, arguments = spec["class_path"], {**spec["init_args"], **given}
    arguments |= TINY_BATCH if options.tiny else {}
    if isinstance(augment := arguments.get("augment"), dict):
        arguments["augment"] = Augment(**augment)
    if name in SIZES:
        return _images(name, arguments, options, unpack)
    if name == "Text" and "path" not in arguments:
        return _text(arguments, options)
    arguments |= TINY_SEQUENCES if options.tiny and name == "Sequences" else {}
    return partial(find_class(name, "data"), **arguments), name


def _images(name: str, arguments: dict[str, Any], options: Options, unpack: bool) -> tuple[Callable[[], Any], str]:
    arguments.pop("root", None)
    folder = Path(options.data or "")
    if name == "FashionMNISTSubset" and not options.tiny:
        if options.data and (folder / "FashionMNIST").is_dir():
            return partial(FashionMNIST, str(folder), **arguments), "Fashion-MNIST"
        return partial(FashionMNISTSubset, **arguments), "the part of Fashion-MNIST in the package"
    if options.data and not options.tiny:
        if name == "CIFAR10" and (folder / "cifar-10-batches-py").is_dir():
            return partial(CIFAR10, str(folder), **arguments), "CIFAR-10"
        if name == "CIFAR10" and unpack and (jpegs := unpacked_jpegs(options.data)):
            return partial(ImageFolder, jpegs, 32, **arguments), "CIFAR-10 as JPEG files"
    shape, num_train, num_test = SIZES[name]
    numbers = (100, 20) if options.tiny else (num_train, num_test)
    return partial(SyntheticImages, shape, *numbers, **arguments), f"random images of {name}'s size"


@cache
def unpacked_jpegs(root: str) -> str | None:
    """Folder of CIFAR-10 as JPEG files, in train/<class> and test/<class>; unpacked if there is an archive only."""
    folder = Path(root) / "cifar10-jpeg"
    if not folder.is_dir():
        archive = folder.with_suffix(".tar.xz")
        if not archive.is_file():
            return None
        folder = Path(scratch().name) / "cifar10"
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    return next((str(found.parent) for found in (folder / "train", *folder.glob("*/train")) if found.is_dir()), None)


def _text(arguments: dict[str, Any], options: Options) -> tuple[Callable[[], Any], str]:
    found = sorted(Path(options.data).rglob("tinyshakespeare*.txt")) if options.data and not options.tiny else []
    if found:
        return partial(Text, str(found[0]), **arguments), "tinyshakespeare"
    length = 2_000 if options.tiny else 1_115_394
    arguments |= {"context_length": 8} if options.tiny else {}

    def make() -> Text:
        letters = random.Random(0).choices(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,:;!?'&3-\n$", k=length
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            path.write_text("".join(letters), encoding="utf-8")
            return Text(str(path), **arguments)

    return make, "random characters in tinyshakespeare's number"
