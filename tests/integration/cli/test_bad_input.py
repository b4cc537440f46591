"""Mistakes on the command line: each is answered with one line and exit code 2, and nothing is written or lost.

The whole table is run end to end by the slow tests, and a selection of it by the quick ones. What the parser says to a
mistake has been recorded (`record_messages.py`), so that the quick tests reword all of its messages.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.helpers.command import CHECKOUT, GAN_RUN, MLP, TINY, fails, tree
from zoo.checkpoints.format import FORMAT
from zoo.cli.main import main
from zoo.cli.messages import explain
from zoo.datamodules import ImageFolder, InMemoryDataModule

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

GAN_YAML = (CHECKOUT / "zoo" / "configs" / "gan_digits.yaml").read_text(encoding="utf-8")
LOSS_LINE = 1 + next(number for number, line in enumerate(GAN_YAML.split("\n")) if line.startswith("    loss:"))
FIT = ["fit", "--config", "gan_digits.yaml"]
ROTATION = "torchvision.transforms.v2.RandomRotation"
RECORDED = Path(__file__).with_name("recorded_messages.yaml")
GAN_OF_CHECKPOINT = [
    "--model=GAN", "--model.latent_dim=4", "--model.generator=MLPGenerator", "--model.generator.width=16",
    "--model.discriminator=MLPDiscriminator", "--model.discriminator.width=16",
]  # fmt: skip
#: Some options of the parser, among which a similar one is suggested.
OPTIONS = [
    "--config",
    "--ckpt_path",
    "--run.root",
    "--trainer.accelerator",
    "--trainer.max_steps",
    "--trainer.callbacks",
]


class WrongLabels(InMemoryDataModule):
    """A user's data module with a fault."""

    input_shape, num_classes, class_names = (1, 8, 8), 3, "abc"

    def __init__(self, fault: str, batch_size: int = 4) -> None:
        super().__init__(batch_size)
        self.fault = fault

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        x, y = torch.zeros(20, 1, 8, 8), torch.arange(20) % 3
        if self.fault == "label":
            y[7] = 3
        elif self.fault == "shape":
            x = torch.zeros(20, 1, 9, 8)
        elif self.fault == "number":
            y = y[:19]
        elif self.fault == "none":
            x, y = x[:0], y[:0]
        return x, y

    def train_dataloader(self) -> DataLoader:
        loader = super().train_dataloader()
        if self.fault == "batch":  # as with more devices than batches
            loader = DataLoader(loader.dataset, 64, drop_last=True)
        return loader


class Hostile:
    def __reduce__(self):
        return (Path("owned").touch, ())


@pytest.fixture(scope="session")
def checkpoints(checkpoint, tmp_path_factory) -> Path:
    """A folder of checkpoints, good and bad."""
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"), checkpoint)


def make_checkpoints(folder: Path, checkpoint: Callable[[str], str]) -> Path:
    for name in ("gan", "mlp", "letters", "diffusion"):
        (folder / f"{name}.ckpt").write_bytes(Path(checkpoint(name)).read_bytes())
    good = (folder / "mlp.ckpt").read_bytes()
    (folder / "truncated.ckpt").write_bytes(good[: len(good) // 2])
    (folder / "empty.ckpt").touch()
    (folder / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}, "payload": Hostile()}, folder / "hostile.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"weights": torch.zeros(3)}, folder / "weights.ckpt")
    held = torch.load(folder / "mlp.ckpt", weights_only=True)
    torch.save(held | {"format": FORMAT + 1}, folder / "newer.ckpt")
    torch.save(held | {"model_class": "os.system"}, folder / "elsewhere.ckpt")
    return folder


def save_picture(path: Path, value: int = 0, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), value, np.uint8)
    pixels[: size // 2] = 255 - value
    Image.fromarray(pixels).save(path)


def pictures(*classes: str, n: int = 6, root: str = "pictures") -> None:
    for k, name in enumerate(classes):
        for i in range(n):
            save_picture(Path(root, name, f"{i}.png"), 40 * k + i)


#: Arguments, or a function of the folder of checkpoints that makes files and returns arguments.
Case = list[str] | Callable[[Path], list[str]]


def recipe(content: str | bytes, *args: str) -> Case:
    def make(_: Path) -> list[str]:
        Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["fit", "--config", "mine.yaml", *args]

    return make


def edited(old: str, new: str) -> Case:
    assert old in GAN_YAML
    return recipe(GAN_YAML.replace(old, new, 1))


def with_checkpoint(name: str, command: str, *args: str) -> Case:
    return lambda folder: [command, *args, "--ckpt_path", str(folder / f"{name}.ckpt")]


def folder(*classes: str, n: int = 6, then: Callable[[], object] = lambda: None, args: tuple[str, ...] = ()) -> Case:
    def make(_: Path) -> list[str]:
        pictures(*classes, n=n)
        then()
        return ["fit", "--model=MLPClassifier", "--data=ImageFolder", "--data.root=pictures", *args, *TINY]

    return make


def port_in_use(_: Path) -> list[str]:
    server = socket.create_server(("", 0))
    TAKEN.append(server)
    os.environ["MASTER_PORT"] = str(server.getsockname()[1])
    return [*GAN_RUN, "--trainer.strategy=ddp", "--trainer.devices=2"]


def run_here(_: Path) -> list[str]:
    Path("runs").write_text("precious")
    return GAN_RUN


def broken_pictures() -> None:
    for path in Path("pictures").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])


TAKEN: list[socket.socket] = []
DIGITS = ("--data=Digits",)
SGD = "{class_path: torch.optim.SGD, init_args: {lr: 1}}"
OWN = ["fit", *MLP, "--data=tests.integration.cli.test_bad_input.WrongLabels"]

NAMES: dict[str, tuple[Case, str]] = {
    "a command": (["fitt"], r"no command fitt; did you mean fit\?"),
    "a recipe": (["fit", "--config", "gna.yaml"], r"gna\.yaml is neither a file nor a recipe; did you mean gan\.yaml\?"),
    "a folder for a recipe": (["fit", "--config", "."], "is neither a file nor a recipe"),
    "no model": (["fit"], "no model is given: take a recipe"),
    "no data": (["fit", "--model", "GAN"], "no data is given"),
    "a model": ([*FIT, "--model", "GAM"], r"--model GAM is neither .*; did you mean GAN\?"),
    "a model in a module": ([*FIT, "--model", "zoo.models.gan.GAMM"], r"--model zoo\.models\.gan\.GAMM .* did you mean GAN\?"),
    "a data module": ([*FIT, "--data", "Digitz"], r"--data Digitz is neither .*; did you mean Digits\?"),
    "a package": ([*FIT, "--data", "nopkg.Foo"], r"--data nopkg\.Foo is neither .*; there are CIFAR10, Digits"),
    "a callback": ([*FIT, "--trainer.callbacks+=SampleLoger"], r"SampleLoger .* did you mean SampleLogger\?"),
    "an optimizer": ([*FIT, "--model.optimizer_g", "Adan"], r"--model\.optimizer_g Adan .*; did you mean Adam\?"),
    "a schedule": ([*FIT, "--model.lr_scheduler_g", "WarmupDecai"], r"did you mean zoo\.optim\.WarmupDecay\?"),
    "an option of the model": ([*FIT, "--model.los", "hinge"], r"--model\.los is not an option of GAN; did you mean loss\?"),
    "an option of another model": ([*FIT, "--model.heads", "4"], r"--model\.heads is not an option of GAN; Seq2Seq, TransformerLM, ViTClassifier have it"),
    "an option of the data": ([*FIT, "--data.batchsize", "3"], r"--data\.batchsize is not an option of Digits; did you mean batch_size\?"),
    "an option of other data": ([*FIT, "--data.cache", "disk"], r"--data\.cache is not an option of Digits; CIFAR10, FashionMNIST, FashionMNISTSubset, ImageFolder, MNIST, Text have it"),
    "an option of the augmentation": ([*FIT, "--data.augment.flp", "true"], r"--data\.augment\.flp is not an option of Augment; did you mean flip\?"),
    "an augmentation": ([*FIT, "--data.augment", "Augmen"], r"--data\.augment Augmen is not a callable that can be imported; did you mean Augment\?"),
    "an augmentation by its short name": ([*FIT, "--data.augment", "PerSample"], r"did you mean zoo\.datamodules\.PerSample\?"),
    "an augmentation of another package": ([*FIT, "--data.augment", f"{ROTATION}s"], r"--data\.augment torchvision\S+ is not a callable that can be imported"),
    "an option of a foreign augmentation": ([*FIT, "--data.augment", ROTATION, "--data.augment.degree", "1"], r"--data\.augment\.degree is not an option of RandomRotation; did you mean degrees\?"),
    "a missing option of a foreign augmentation": ([*FIT, "--data.augment", ROTATION], r"--data\.augment\.degrees must be given"),
    "a word for a number of a foreign augmentation": ([*FIT, "--data.augment", ROTATION, "--data.augment.degrees", "x"], r"--data\.augment\.degrees x is not possible for torchvision\S+RandomRotation"),
    "an option of an optimizer": ([*FIT, "--model.optimizer_g.lrr", "1"], r"--model\.optimizer_g\.lrr is not an option of Adam; did you mean lr\?"),
    "an option of a callback": ([*FIT, "--trainer.callbacks.patiense", "1"], r"patiense is not an option of EarlyStopping; did you mean patience\?"),
    "an option of the trainer": ([*FIT, "--trainer.max_stepz", "3"], r"--trainer\.max_stepz is not an option; did you mean --trainer\.max_steps\?"),
    "an option of the runs": ([*FIT, "--run.rot", "x"], r"--run\.rot is not an option; did you mean --run\.root\?"),
    "an option of sample": (["sample", "--ckpt_paht", "x"], r"--ckpt_paht is not an option; did you mean --ckpt_path\?"),
    "an option that looks like none": ([*FIT, "--foo", "3"], "--foo is not an option; --help names them"),
    "no option": (["sample", "x"], "x is not an option: options begin with --"),
    "an option without its value": ([*FIT, "--trainer.max_steps"], r"--trainer\.max_steps: expected one argument"),
    "arguments for list": (["list", "everything"], "list everything: there is no such kind of things; there are models, networks"),
    "reading a checkpoint so that it may run something": ([*FIT, "--weights_only", "false"], "--weights_only is not an option"),
}  # fmt: skip

VALUES: dict[str, tuple[Case, str]] = {
    "a wrong choice": ([*FIT, "--model.loss", "hing"], "--model.loss hing is not possible; choose one of minimax, non_sat"),
    "a word for a number": ([*FIT, "--trainer.max_steps", "abc"], r"--trainer\.max_steps abc .* must be of type int"),
    "a word for a learning rate": ([*FIT, "--model.optimizer_g.lr", "x"], r"--model\.optimizer_g\.lr x .* type float"),
    "a fraction for a number": ([*FIT, "--data.batch_size", "3.5"], r"--data\.batch_size 3\.5 is not possible; it must be of type int"),
    "a list for a number": ([*FIT, "--data.batch_size", "[3]"], r"--data\.batch_size \[3\] is not possible"),
    "a number for a model": ([*FIT, "--model", "3"], "--model 3 is neither in the zoo"),
    "a size of nothing": ([*FIT, "--model.latent_dim", "0"], "latent_dim is 0; it must be at least 1"),
    "a size beyond all memory": ([*FIT, "--model.latent_dim", "99999999999999999"], "Storage size"),
    "a size beyond this machine's memory": ([*FIT, "--model.latent_dim", "9999999999"], "^the memory does not suffice for .* GB at once"),
    "a batch of less than nothing": ([*FIT, "--data.batch_size=-4"], "batch_size is -4; it must be at least 1"),
    "nan": ([*FIT, "--model.penalty_weight", ".nan"], "^--model.penalty_weight is nan, which is not a number$"),
    "nan for an optimizer": ([*FIT, "--model.optimizer_g.lr", ".nan"], "^--model.optimizer_g.lr is nan, which is not a number$"),
    "an infinite share": ([*FIT, "--data.val_size", ".inf"], "val_size is inf; give a number of samples, or a fraction"),
    "a number of 24 digits": ([*FIT, "--data.seed", f"{10**23}"], r"^--data.seed is too large; whole numbers must be below 2\*\*63$"),
    "a seed above NumPy's": ([*FIT, f"--data.seed={2**32}"], r"seed is 4294967296; it must be at least 0 and below 2\*\*32"),
    "a seed of 24 digits": ([*FIT, f"--seed_everything={10**23}"], "is not in bounds|too large"),
    "repeats beyond all memory": ([*GAN_RUN, f"--data.repeats={10**12}"], "^the memory does not suffice for .* GB at once; make "),
    "a negative learning rate": ([*GAN_RUN, "--model.optimizer_g.lr=-1"], "Invalid learning rate: -1"),
    "no threads": ([*FIT, "--threads=0"], "threads is 0; it must be at least 1"),
    "a number of threads that is none": ([*FIT, "--threads=many"], "--threads many is not possible"),
    "a negative seed": ([*FIT, "--seed_everything=-1"], "-1 is not in bounds"),
    "validation after 0 batches": ([*FIT, "--trainer.val_check_interval=0"], r"val_check_interval is 0; .*limit_val_batches 0"),
    "validation after more batches than there are": (["fit", *MLP, *DIGITS, *TINY, "--trainer.val_check_interval=999"], r"`val_check_interval` \(999\) must be less .*check_val_every_n_epoch"),
    "logs after -1 steps": ([*FIT, "--trainer.log_every_n_steps=-1"], r"trainer\.log_every_n_steps is -1"),
    "a share above 1": ([*FIT, "--trainer.limit_train_batches=1.5"], "limit_train_batches"),
    "a precision that does not exist": ([*FIT, "--trainer.precision", "9"], r"--trainer\.precision 9 is not possible"),
    "an accelerator that is not there": ([*FIT, "--trainer.accelerator", "tpu"], r"^--trainer\.accelerator tpu is not possible: .* use --trainer\.accelerator auto, or cpu$"),
    "a logger that does not exist": ([*FIT, "--trainer.logger+=TensorBordLogger"], r"^--trainer\.logger TensorBordLogger is neither .*; did you mean TensorBoardLogger\?$"),
    "an option that a logger lacks": ([*FIT, "--trainer.logger+=CSVLogger", "--trainer.logger.save_dri=x"], r"save_dri is not an option of CSVLogger; did you mean save_dir\?$"),
    "a learning rate of a model with two": ([*FIT, "--model.lr=1"], r"^--model\.lr is not an option of GAN; did you mean --model\.optimizer_d\.lr or --model\.optimizer_g\.lr\?$"),
    "an option of the optimizer": (["fit", *MLP, "--data=Digits", "--model.momentum=1"], r"did you mean --model\.optimizer\.momentum\?$"),
    "a name of older versions": ([*FIT, "--trainer.gpus=1"], r"^--trainer\.gpus is not an option; did you mean --trainer\.devices\?$"),
    "a word for devices": ([*FIT, "--trainer.accelerator=cpu", "--trainer.devices=x"], "devices"),
    "no devices": ([*FIT, "--trainer.accelerator=cpu", "--trainer.devices=0"], "devices"),
    "a strategy that does not exist": ([*FIT, "--trainer.strategy", "foo"], "strategy='foo'"),
    "the trainer's accumulation": ([*FIT, "--trainer.accumulate_grad_batches=2"], r"use --model\.accumulate_grad_batches"),
    "a batch above the training set": ([*FIT, "--data.batch_size=5000", "--data.repeats=1"], "batch_size 5000 is larger .* 1200"),
    "no training data left": ([*FIT, "--data.val_size", "5000"], "val_size .* holds out 5000 of 1500"),
    "no validation data": ([*FIT, "--data.val_size", "0"], "val_size is 0"),
    "a share that leaves no validation data": ([*FIT, "--data.val_size", "0.0001"], "val_size .* holds out 0 of 1500"),
    "a monitor of early stopping that no metric has": ([*GAN_RUN, "--trainer.callbacks.monitor=val/foo"], r"the monitor val/foo is not a metric of this run.*there are .*val/fd"),
    "a monitor of BestAndLastCheckpoint that no metric has": ([*GAN_RUN, "--trainer.callbacks=BestAndLastCheckpoint", "--trainer.callbacks.monitor=val/df"], r"val/df is not a metric of this run; did you mean val/fd\?"),
    "a monitor of ModelCheckpoint that no metric has": ([*GAN_RUN, "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=val/foo"], "the monitor val/foo is not a metric"),
    "a name that leads out of the runs": ([*GAN_RUN, "--run.name=" + "x" * 300], "cannot be created .* too long; choose another"),
}  # fmt: skip


def nested_aliases(form: str) -> str:
    """A recipe of 20 lines whose last one stands for 9**20 values."""
    nine = [", ".join([f"*a{k}"] * 9) for k in range(20)]
    lines = [f"a{k + 1}: &a{k + 1} " + form.format(*[one] * form.count("{}")) for k, one in enumerate(nine)]
    return "\n".join(["a0: &a0 {b: 1}", *lines, "model: *a20\n"])


# Files that are no recipe: found before the parser is built, in a few milliseconds
FILES: dict[str, tuple[Case, str]] = {
    "a tab": (edited("  class_path: GAN", "\tclass_path: GAN"), "mine.yaml, line 3, column 1: a tab"),
    "an open bracket": (edited("[0.0, 0.99]", "[0.0, 0.99"), r"mine\.yaml, line \d+, column \d+: expected ',' or '\]'"),
    "wrong indentation": (recipe("model:\n  class_path: GAN\n init_args: {}\n"), "mine.yaml, line 3, column 2: expected"),
    "a forgotten colon": (recipe("model GAN\ndata: Digits\n"), "mine.yaml, line 2, column 5"),
    "a key that is there twice": (recipe(GAN_YAML + "model: GAN\n"), r"line \d+, column 1: model appears twice"),
    "an option that is there twice": (edited("    loss:", "    loss: hinge\n    loss:"), rf"line {LOSS_LINE + 1}, column 5: loss appears twice"),
    "a misspelt class_path": (edited("  class_path: GAN", "  clas_path: GAN"), r"clas_path is not a key of model; did you mean class_path\?"),
    "a misspelt init_args": (edited("  init_args:", "  init_arg:"), r"init_arg is not a key of model; did you mean init_args\?"),
    "a list of models": (recipe("- model: GAN\n"), "line 1, column 1: a recipe must be lines of 'name: value', not a list"),
    "a list for the trainer": (recipe("model: GAN\ndata: Digits\ntrainer: [1]\n"), "trainer must be lines of 'name: value', not a list"),
    "a list for the options": (recipe("model: {class_path: GAN, init_args: [1]}\n"), r"model\.init_args must be lines"),
    "a word": (recipe("hello"), "must be lines of 'name: value', not a single value"),
    "nothing": (recipe(""), "mine.yaml is empty"),
    "comments only": (recipe("# hello\n"), "mine.yaml is empty"),
    "a binary file": (recipe(bytes(range(256))), "mine.yaml is not a text file in UTF-8"),
    "control characters": (recipe("model: GAN\x00\n"), "mine.yaml is not YAML"),
    "another encoding": (recipe("# Größe\nmodel: GAN\n".encode("latin-1")), "mine.yaml is not a text file in UTF-8"),
    "two documents": (recipe("model: GAN\n---\nmodel: GAN\n"), "another document"),
    "a tag that would run something": (recipe("model: !!python/object/apply:os.system ['touch owned']\n"), "mine.yaml, line 1, column 8: .*constructor"),
    "an alias of nothing": (recipe("model: *a\n"), "undefined alias"),
    "a date that is none": (recipe("model: 2020-13-45\n"), "mine.yaml is not a valid recipe"),
    "nested aliases": (recipe(nested_aliases("[{}]")), "mine.yaml has more than 10,000 values, counting each alias"),
    "nested merges": (recipe(nested_aliases("{{<<: [{}]}}")), "mine.yaml has more than 10,000 values"),
    "long text in aliases": (recipe(f"a: &a {'x' * 10**6}\nmodel: [{'*a, ' * 1000}]\n"), "mine.yaml has more than 10,000 values"),
    "a circle of aliases": (recipe("model: &a [*a]\n"), "mine.yaml has more than 10,000 values"),
    "a thousand brackets": (recipe("model: " + "[" * 5000), "mine.yaml"),
}  # fmt: skip

RECIPES: dict[str, tuple[Case, str]] = {
    "a misspelt section": (edited("trainer:", "trianer:"), r"--trianer\.accelerator is not an option; did you mean --trainer\.accelerator\?"),
    "a misspelt option of the trainer": (edited("max_steps:", "max_step:"), r"did you mean --trainer\.max_steps\?"),
    "a misspelt option of the model": (edited("    loss:", "    los:"), r"--model\.los is not an option of GAN; did you mean loss\?"),
    "a list for the data": (recipe("model: GAN\ndata: [Digits]\n"), r"--data \['Digits'\] is not possible; it must be a class"),
    "no model in it": (recipe("model:\ndata: Digits\n"), "no model is given"),
    "an option of the model stacked before": (["fit", "--config", "mlp.yaml", *FIT[1:], "--model.hidden_dropout=0.1"], "hidden_dropout is not an option of GAN; MLPClassifier has it"),
    "a callback for another model": (["fit", "--model=MLPClassifier", *DIGITS, "--trainer.callbacks=SampleLogger", *TINY], r"SampleLogger needs sample\(\), which MLPClassifier does not have: use a generative model"),
    "tokens for an image model": ([*FIT, "--data=Sequences"], "GAN is for images or points, and Sequences has tokens"),
    "images for a language model": (["fit", "--config", "transformer.yaml", *DIGITS], "TransformerLM reads tokens, not samples of the shape"),
    "questions for a language model": (["fit", "--config", "transformer.yaml", "--data=Sequences"], "the data has 14 tokens"),
    "samples on the device of a CPU": (["fit", "--config", "transformer.yaml", "--data.cache=device", "--trainer.accelerator=cpu"], r"cache is device, but this run is on the CPU: use --trainer\.accelerator gpu, or cache auto"),
    "text for a translator": (["fit", "--config", "seq2seq.yaml", "--data=Text"], "Seq2Seq needs data with an output_length"),
    "points for a network of images": (["fit", "--config", "resnet.yaml", "--data=Points"], r"takes images \(C, H, W\)"),
    "a student without a teacher": (["fit", "--config", "consistency.yaml", *TINY], "tuned from a trained Diffusion model: set --model.teacher"),
    "a teacher that is not there": (["fit", "--config", "consistency.yaml", "--model.teacher=no.ckpt"], "no.ckpt is not a file"),
}  # fmt: skip

DATA: dict[str, tuple[Case, str]] = {
    "a folder without the data": ([*FIT, "--data=FashionMNIST", "--data.root=nowhere"], "FashionMNIST is not in .*nowhere .*root"),
    "no folder": ([*FIT, "--data=ImageFolder", "--data.root=nowhere"], "nowhere does not exist; point root"),
    "no root": ([*FIT, "--data=ImageFolder"], "root"),
    "an empty folder": (folder(then=lambda: Path("pictures").mkdir()), "classifier needs at least 2 classes|has no images"),
    "a file for a folder": (folder(then=lambda: Path("pictures").write_text("x")), "pictures is a file, not a folder"),
    "a class without pictures": (folder("a", "b", then=lambda: Path("pictures/c").mkdir()), "pictures/c has no images"),
    "one class for a classifier": (folder("a"), "at least 2 classes, and the data has 1"),
    "pictures beside the classes": (folder("a", "b", then=lambda: save_picture(Path("pictures/x.png"))), "holds both images and folders"),
    "other classes in the test folder": (folder("train/a", "train/b", "test/a", "test/c"), "have different classes; .*b, c"),
    "pictures that all are truncated": (folder("a", "b", then=broken_pictures), r"none of the 11 images of the training split of ImageFolder can be read: .*\.png"),
    "pictures of no bytes": (folder("a", "b", then=lambda: [p.write_bytes(b"") for p in Path("pictures").rglob("*.png")]), "not an image"),
    "a class of broken pictures": (folder("a", "b", then=lambda: [p.write_bytes(b"x") for p in Path("pictures/b").glob("*.png")]), "pictures/b has no readable image"),
    "fewer pictures than a batch": (folder("a", "b"), r"batch_size 64 is larger than the training set of \d+"),
    "too few pictures for three splits": (folder("a", "b", n=1), "test_size 0.1 holds out 0 of 2 images"),
    "a crop above the size": (folder("a", "b", args=("--data.image_size=4", "--data.augment.crop=4")), "augment.crop 4 is too large"),
    "labels out of range": ([*OWN, "--data.fault=label"], "the training split of WrongLabels has labels from 0 to 3; they must be integers from 0 to 2"),
    "samples of another shape": ([*OWN, "--data.fault=shape"], r"has samples of the shape \(1, 9, 8\), not \(1, 8, 8\)"),
    "fewer labels than samples": ([*OWN, "--data.fault=number"], "has 20 samples and 19 labels"),
    "no batch for a device": ([*OWN, "--data.fault=batch", *TINY], "not one training batch .* smaller --data.batch_size"),
    "no samples": ([*OWN, "--data.fault=none"], "has 0 samples and 0 labels"),
    "no text": (["fit", "--config", "transformer.yaml", "--data.path=no.txt"], "no.txt does not exist; point path"),
    "text that is none": (lambda _: Path("x.txt").write_bytes(b"\xff\xfe\x00") and ["fit", "--config", "transformer.yaml", "--data.path=x.txt"], "not UTF-8"),
    "too little text": (lambda _: Path("x.txt").write_text("abc") and ["fit", "--config", "transformer.yaml", "--data.path=x.txt", *TINY], "not enough|larger than the"),
}  # fmt: skip

CHECKPOINTS: dict[str, tuple[Case, str]] = {
    **{
        f"{command} with a {name} checkpoint": (with_checkpoint(name, command, *args), expected)
        for command, args in {
            "fit": (*MLP, *DIGITS), "validate": (*MLP, *DIGITS), "test": (*MLP, *DIGITS), "predict": (*MLP, *DIGITS),
            "sample": (), "edit": ("--task=vary", "--image=x.png"), "export": ("--out=x.onnx",),
        }.items()
        for name, expected in {
            "hostile": "hostile.ckpt is not a checkpoint that can be read safely",
            "truncated": "truncated.ckpt is not a checkpoint that can be read safely",
            "newer": f"newer.ckpt was written by a newer version of lightning-zoo .format {FORMAT + 1}, .*upgrade",
            "missing": "missing.ckpt is not a file",
        }.items()
    },
    "a checkpoint of no bytes": (with_checkpoint("empty", "sample"), "empty.ckpt is not a checkpoint that can be read safely"),
    "a text for a checkpoint": (with_checkpoint("text", "validate", *MLP, *DIGITS), "text.ckpt is not a checkpoint that can be read safely"),
    "a list for a checkpoint": (with_checkpoint("list", "fit", *MLP, *DIGITS), "list.ckpt is not a checkpoint of a model: it has no state_dict"),
    "weights alone": (with_checkpoint("weights", "sample"), "weights.ckpt is not a checkpoint of a model: it has no state_dict"),
    "a class that is no model": (with_checkpoint("elsewhere", "sample"), "os.system is not in the zoo"),
    "a checkpoint of another model": (with_checkpoint("gan", "fit", *MLP, *DIGITS), "gan.ckpt holds a GAN, not a MLPClassifier: give the recipe of its run, or --model GAN"),
    "sampling from a classifier": (with_checkpoint("mlp", "sample"), "holds a MLPClassifier, which is not a generative model"),
    "editing by a GAN": (with_checkpoint("gan", "edit", "--task=vary", "--image=x.png"), "edit needs a diffusion model"),
    "other options than the checkpoint's": (with_checkpoint("mlp", "test", "--model=MLPClassifier", "--model.width=9", "--model.depth=1", *DIGITS), r"mlp.ckpt does not fit the MLPClassifier: network\S+ is 8x64 in it and 9x64 here; give the options of its run"),
    **{
        f"{command} on data of another shape": (with_checkpoint("mlp", command, *MLP, "--data=Points"), r"mlp\.ckpt was trained on samples of the shape \(1, 8, 8\) in 10 classes, and the data given has samples of the shape \(1,\) in 3 classes")
        for command in ("fit", "validate", "test", "predict")
    },
    "text of other letters": (
        lambda folder: Path("x.txt").write_text("xyz" * 2000) and [
            "validate", "--model=TransformerLM", "--model.layers=1", "--model.width=8", "--model.heads=2", "--data=Text",
            "--data.path=x.txt", "--data.tokenizer=characters", "--data.context_length=8", "--ckpt_path", str(folder / "letters.ckpt"),
        ],
        "letters.ckpt was trained on text of other characters",
    ),
    "sampling without a checkpoint": (["sample"], "--ckpt_path or --model must be given"),
    "a checkpoint that is not there, with other mistakes": (["sample", "--steps", "a", "--n=0", "--ckpt_path=no.ckpt", "--help"], "no.ckpt is not a file"),
    "a checkpoint that is not there, of a class that is given": (["sample", "--model_class=GAN", "--ckpt_path=no.ckpt"], "no.ckpt is not a file"),
    "a class that the checkpoint does not hold": (with_checkpoint("gan", "sample", "--model_class=Difusion"), r"Difusion is not in the zoo; did you mean Diffusion\?"),
    "an option of a model without a checkpoint": (["sample", "--guidance_scale", "1"], "--ckpt_path or --model must be given: the model decides whether it has --guidance_scale"),
    "an option of another generative model": (with_checkpoint("gan", "sample", "--guidance_scale=1"), "--guidance_scale has no effect on a GAN: leave it out; its own options are --frames"),
    "an option of a model, misspelt": (with_checkpoint("letters", "sample", "--temprature=1"), r"--temprature has no effect on a TransformerLM; did you mean --temperature\?"),
    "a word for a number of a model": (with_checkpoint("letters", "sample", "--top_k=many"), "--top_k many is not possible; it must be of type int"),
    "more samples than the memory holds": (with_checkpoint("gan", "sample", f"--n={10**12}"), r"drawing 1000000000000 samples takes 3500000.0 GB, but only \S+ GB .* make --n smaller"),
    "more frames than the memory holds": (with_checkpoint("gan", "sample", "--trajectory=a.gif", f"--frames={10**12}"), r"make --n or --frames smaller"),
    "more steps of an interpolation than the memory holds": (with_checkpoint("gan", "sample", f"--interpolate={10**12}"), r"make --n or --interpolate smaller"),
    "steps without end": (with_checkpoint("diffusion", "sample", f"--steps={10**12}"), "steps is 1000000000000; it must be at most 100000"),
    "an infinite guidance": (with_checkpoint("diffusion", "sample", "--guidance_scale=.inf"), "guidance_scale is inf; it must be a finite number"),
    "an output below a file": (with_checkpoint("gan", "sample", "--out=/dev/null/x.png"), "/dev/null is not a folder, so that /dev/null/x.png cannot be written"),
    "a seed that is too large": (with_checkpoint("gan", "sample", f"--seed={2**64}"), "--seed is too large; whole numbers must be below"),
    "an ending that says nothing": (with_checkpoint("gan", "sample", "--out", "x.jpeg"), r"must end in one of \.png, \.npz, \.gif"),
    "a number of samples that is none": (with_checkpoint("gan", "sample", "--n", "a"), "--n a .* must be of type int"),
    "an export without a checkpoint": (["export", "--steps", "3"], "--ckpt_path or --model must be given: the model decides whether it has --steps"),
    "an export to nowhere": (with_checkpoint("gan", "export"), "--out must be given"),
    "an export with an unknown ending": (with_checkpoint("gan", "export", "--out=gan.bin"), r"gan\.bin must end in one of \.onnx for onnx"),
    "an export with the ending of another format": (with_checkpoint("gan", "export", "--out=gan.onnx", "--format=safetensors"), r"gan\.onnx must end in \.safetensors"),
    "a part that the model lacks": (with_checkpoint("gan", "export", "--out=gan.onnx", "--part=sampler"), "GAN has no part sampler; it has generator"),
    "an option that the part lacks": (with_checkpoint("mlp", "export", "--out=mlp.onnx", "--steps=3"), "--steps has no effect on the part classifier of MLPClassifier: leave it out; its own options are --preprocess"),
    "an option of a part, misspelt": (with_checkpoint("mlp", "export", "--out=mlp.onnx", "--probabilites=true"), r"; did you mean --probabilities\?"),
    "predictions of a generator": (with_checkpoint("gan", "predict", *GAN_OF_CHECKPOINT, *DIGITS), "GAN makes no predictions; .* command sample"),
    "predictions without a checkpoint": (["predict", *FIT[1:]], "predict without a checkpoint measures a GAN of random weights: give a checkpoint by --ckpt_path; .* fit trains one"),
}  # fmt: skip


def searching(space: str, *args: str) -> Case:
    def make(_: Path) -> list[str]:
        Path("space.yaml").write_text(space, encoding="utf-8")
        return ["tune", "--search", "space.yaml", *(args or FIT[1:])]

    return make


GOOD_SPACE = "model.latent_dim: [4, 8]\n"
TUNE: dict[str, tuple[Case, str]] = {
    "no space": (["tune", *FIT[1:]], "--search must be given"),
    "a space": (["tune", *FIT[1:], "--search=gan_spac.yaml"], r"gan_spac\.yaml is neither a file nor a search space; did you mean gan_space\.yaml\?"),
    "a range upside down": (searching("model.latent_dim: {low: 8, high: 4}\n"), r"space\.yaml, line 1, column 1: model\.latent_dim: low is 8; it must be below high"),
    "an option of tune": (searching(GOOD_SPACE, *FIT[1:], "--trails=3"), r"--trails is not an option; did you mean --trials\?"),
    "no trials": (searching(GOOD_SPACE, *FIT[1:], "--trials=0"), "--trials is 0; it must be at least 1"),
    "a metric of the test split": (searching(GOOD_SPACE, *FIT[1:], "--metric=test/fd"), "--metric test/fd is of the test split"),
    "a checkpoint": (searching(GOOD_SPACE, *FIT[1:], "--ckpt_path=last"), "--ckpt_path is for one run"),
    "a metric that is not measured": (searching(GOOD_SPACE, *GAN_RUN[1:], "--metric=val/df", "--mode=min"), r"val/df is not measured in validation; did you mean val/fd\?"),
    "an option that the model lacks": (searching("model.latent_dmi: [4, 8]\n"), r"space\.yaml: --model\.latent_dmi is not an option of GAN; did you mean latent_dim\?"),
    "a choice that the option lacks": (searching("model.latent_dim: [4, 8]\nmodel.loss: [hinge, hing]\n"), r"space\.yaml: --model\.loss hing is not possible; choose one of"),
    "a low end that the model refuses": (searching("model.latent_dim: {low: 0, high: 8}\n"), r"space\.yaml: latent_dim is 0; it must be at least 1"),
    "several devices": (searching(GOOD_SPACE, *FIT[1:], "--trainer.accelerator=cpu", "--trainer.devices=2"), "one device, not on 2: give --trainer.devices 1"),
}  # fmt: skip

MACHINE: dict[str, tuple[Case, str]] = {
    "a file where the runs belong": (run_here, "the run's folder cannot be created in runs/gan_digits: .*; choose another --run.root"),
    "a place that cannot be written to": ([*GAN_RUN, "--run.root=/proc/runs"], "the run's folder cannot be created in /proc/runs/gan_digits: .*; choose another --run.root"),
    "a port that is taken": (port_in_use, r"cannot meet at MASTER_PORT \d+ .*; unset MASTER_PORT, or set it to a free port"),
}  # fmt: skip
if not torch.cuda.is_available():
    MACHINE["a GPU that is not there"] = (
        [*FIT, "--trainer.accelerator=gpu"],
        r"^--trainer\.accelerator gpu is not possible: .* use --trainer\.accelerator auto, or cpu$",
    )
    MACHINE["seven GPUs"] = (
        [*FIT, "--trainer.accelerator=cuda", "--trainer.devices=7"],
        r"^--trainer\.accelerator cuda is not possible: .* use --trainer\.accelerator auto, or cpu$",
    )

CASES = {
    f"{what}: {name}": case
    for what, cases in {
        "names": NAMES, "values": VALUES, "files": FILES, "recipes": RECIPES, "data": DATA, "checkpoints": CHECKPOINTS,
        "tune": TUNE,
        "machine": MACHINE,
    }.items()
    for name, case in cases.items()
}  # fmt: skip
#: Cases that the quick tests run end to end: one for each place at which a mistake is found.
QUICK = {
    *(f"files: {name}" for name in FILES if name != "a thousand brackets"),
    "names: a command",
    "names: a recipe",
    "names: no model",
    "names: no data",
    "names: a model",
    "names: an option of the model",
    "names: an option of sample",
    "names: an option that looks like none",
    "names: arguments for list",
    "values: a wrong choice",
    "values: a size of nothing",
    "values: nan for an optimizer",
    "values: a number of 24 digits",
    "values: a size beyond this machine's memory",
    "checkpoints: more samples than the memory holds",
    "values: validation after 0 batches",
    "values: a monitor of BestAndLastCheckpoint that no metric has",
    "recipes: tokens for an image model",
    "data: no folder",
    "data: labels out of range",
    "checkpoints: fit with a hostile checkpoint",
    "checkpoints: sample with a hostile checkpoint",
    "checkpoints: fit on data of another shape",
    "tune: a range upside down",
    "tune: an option of tune",
    "tune: a metric of the test split",
    "machine: a file where the runs belong",
}


def is_answered_with_one_line_and_nothing_is_written(name, checkpoints, capsys, monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    case, expected = CASES[name]
    args = case(checkpoints) if callable(case) else case
    before = tree(Path.cwd()), tree(checkpoints)
    try:
        message = fails(capsys, *args)
    finally:
        while TAKEN:
            TAKEN.pop().close()
        os.environ.pop("MASTER_PORT", None)
    assert re.search(expected, message), message
    assert len(message) < 700
    assert (tree(Path.cwd()), tree(checkpoints)) == before, "nothing is written, nothing is lost"


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_mistake_is_answered_with_one_line_and_nothing_is_written(name, checkpoints, capsys, monkeypatch):
    is_answered_with_one_line_and_nothing_is_written(name, checkpoints, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_every_mistake_is_answered_with_one_line_and_nothing_is_written(name, checkpoints, capsys, monkeypatch):
    is_answered_with_one_line_and_nothing_is_written(name, checkpoints, capsys, monkeypatch)


# What the parser says to the mistakes above, recorded

MESSAGES = yaml.safe_load(RECORDED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_of_the_parser_is_reworded_into_one_line(name):
    message = explain(MESSAGES[name], OPTIONS)
    assert re.search(CASES[name][1], message), message
    assert len(message) < 700
    assert "\n" not in message


# Unusual images that are read


def test_images_of_every_kind_are_read_or_named():
    """16 bits, CMYK, animations, grey with transparency, names with spaces and in other scripts; broken ones by name."""
    names = ("mit Leerzeichen", "ящик", "箱")
    pictures(*(f"{split}/{name}" for split in ("train", "test") for name in names), n=4)
    rgb = Image.new("RGB", (9, 7), (200, 10, 10))
    folder = Path("pictures/train/箱")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((7, 9), 51400, np.uint16)).save(folder / "16 bit.png")
    rgb.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (9, 7))])
    Image.new("LA", (9, 7), (0, 0)).save(folder / "прозрачный.png")
    Image.new("1", (9, 7), 1).save(folder / "bits.png")
    (folder / "kaputt.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "nothing.png").touch()
    data = ImageFolder("pictures", image_size=4, val_size=1)
    with pytest.warns(UserWarning, match=r"2 of 19 images cannot be read and are skipped: .*(kaputt|nothing)"):
        x, y = data.load_split(train=True)
    assert data.class_names == names
    files = data._split_files(train=True)
    kept = [file.path.name for file in files if file.path.name not in ("kaputt.jpg", "nothing.png")]
    colours = {name: x[i].float().mean((1, 2)).round().tolist() for i, name in enumerate(kept)}
    assert colours["16 bit.png"] == [200, 200, 200]
    assert colours["animated.gif"] == pytest.approx([200, 10, 10], abs=3), "the first frame"
    assert colours["cmyk.jpg"] == pytest.approx([200, 10, 10], abs=12)
    assert colours["прозрачный.png"] == [255, 255, 255], "transparent on white"
    assert colours["bits.png"] == [255, 255, 255]
    assert y.bincount().tolist() == [4, 4, 8 + 1]


def test_a_file_whose_name_is_no_unicode_is_written_and_named(checkpoints, capsys):
    main(["sample", "--ckpt_path", str(checkpoints / "gan.ckpt"), "--n=1", "--out=\udcff.png"])
    assert capsys.readouterr().out.endswith("1 samples of GAN in \\udcff.png\n")
    assert Path("\udcff.png").is_file()


def test_a_folder_that_may_not_be_read_is_named(capsys, monkeypatch):
    pictures("a", "b")
    scandir = os.scandir

    def refuse(path):  # permissions would not stop root
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    args = ["fit", "--model=MLPClassifier", "--data=ImageFolder", "--data.root=pictures", *TINY]
    assert fails(capsys, *args) == "pictures/b cannot be read: Permission denied"
    assert not Path("runs").exists()
