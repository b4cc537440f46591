"""Random changes to recipes and folders of images: they work, or one line says what is wrong with them."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.command import only_error, tree
from zoo.cli.main import main
from zoo.cli.recipes import check_recipe
from zoo.datamodules import ImageFolder
from zoo.errors import UserError
from zoo.registry import recipe_files

pytestmark = [
    pytest.mark.usefixtures("in_an_empty_folder"),
    pytest.mark.filterwarnings("ignore:.*images cannot be read and are skipped"),
]

# Recipes whose data every machine has.
RECIPES = {name: recipe_files()[f"{name}.yaml"].read_text(encoding="utf-8") for name in (
    "gan", "gan_points", "gan_theory", "diffusion", "diffusion_points", "gradient_flow", "seq2seq", "ddp",
)}  # fmt: skip
SECONDS = 60  # for one command
ROOM = 6 << 30  # bytes of memory that a command can ask for

# The same examples every time, unless ZOO_FUZZ_EXAMPLES asks for more of them to find something new.
ASKED = os.environ.get("ZOO_FUZZ_EXAMPLES")
options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
quick = settings(max_examples=4, derandomize=True, **options)
many = settings(max_examples=80, derandomize=True, **options)
thorough = settings(max_examples=int(ASKED or 12), derandomize=ASKED is None, **options)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limits of time and memory within which a mistake must be answered."""

    def hang(*_: Any) -> None:
        raise AssertionError(f"the command takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1][1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before[1])
        signal.signal(signal.SIGALRM, before[0])


def exit_code(args: list[str]) -> Any:
    try:
        main(args)
    except SystemExit as stop:
        return stop.code
    return 0


@contextlib.contextmanager
def in_a_new_folder() -> Iterator[Path]:
    """Changes into an empty folder: an example of a test has no folder of its own."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(here)


def answers(prepare: Callable[[], list[str]], train: bool = False) -> None:
    """Runs a command in an empty folder: it succeeds, or prints one line, exits with 2 and writes nothing.

    Args:
        prepare: makes files and returns the command and its options.
        train: train; else everything is built, and nothing computed.
    """
    errors = io.StringIO()
    with in_a_new_folder() as folder, pytest.MonkeyPatch.context() as patch:
        if not train:
            patch.setattr("zoo.cli.fit.ZooCLI.fit", lambda self, **kwargs: None)
        args = prepare()
        before = tree(folder)
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()), limited():
            code = exit_code(args)
        if code:
            line = only_error(errors.getvalue())
            assert len(line) > 5
        if code == 1:  # NaN or Inf, such as by a learning rate
            assert train and re.search("became|is (nan|inf)", line)
        elif code:
            assert code == 2
            assert tree(folder) == before


FIT = ["fit", "--config", "mine.yaml", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"]
LINES = [
    "- 1",
    "  a: b",
    "model:",
    "? x",
    "&a b",
    "*a",
    "---",
    "...",
    "\t",
    "%",
    "<<: *a",
    "!!set {a}",
    "!x y",
    "|",
    "{",
    "]",
    "'",
]


@st.composite
def spoiled_text(draw: st.DrawFn) -> str:
    """A recipe with some lines and characters changed."""
    text = draw(st.sampled_from(sorted(RECIPES.values())))
    for _ in range(draw(st.integers(1, 3))):
        lines = text.split("\n")
        i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
        # No digits: a recipe that asks for a million layers is valid, and slow.
        noise = draw(st.text(st.characters(exclude_categories=("Nd", "Cs")), max_size=6))
        text = draw(st.sampled_from([
            "\n".join([*lines[:i], *lines[i + 1 :]]),
            "\n".join([*lines[:i], lines[j], *lines[i:]]),
            "\n".join([*lines[:i], " " * draw(st.integers(0, 6)) + lines[i].lstrip(), *lines[i + 1 :]]),
            "\n".join([*lines[:i], draw(st.sampled_from(LINES)), *lines[i:]]),
            text[:at],
            text[:at] + noise + text[at:],
            text[:at] + noise + text[at + length :],
        ]))  # fmt: skip
    return text


ODD: list[Any] = [
    None, True, False, "", " ", "abc", "None", "zoo", "os.system", "lightning.pytorch.LightningModule", "../..", "é",
    -1, 0, 1, 2, 3, 7, 1.5, -0.5, 10**23, float("nan"), float("inf"), float("-inf"), [], [1], [[]], ["a"], {}, {"a": 1},
    {"class_path": "GAN"}, {"class_path": None}, {"class_path": 3}, {"class_path": "Digits", "init_args": None},
    {"class_path": "torch.nn.Linear"}, {"class_path": "torch.optim.Adam"}, {"init_args": {"a": 1}}, "1e400", "0x10",
]  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


@st.composite
def spoiled_values(draw: st.DrawFn) -> str:
    """A recipe with some values changed, removed or renamed."""
    config = copy.deepcopy(yaml.safe_load(draw(st.sampled_from(sorted(RECIPES.values())))))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(sorted(places(config), key=str)))
        parent = config
        for key in path:
            parent = parent[key]
        action = draw(st.sampled_from(["change", "change", "change", "remove", "rename"]))
        if action == "change":
            parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif action == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            name = draw(st.sampled_from([f"{last}s", str(last)[1:] or "x", 3, "class_path", "init_args", "lr"]))
            parent[name] = parent.pop(last)
        if not config:
            break
    return yaml.safe_dump(config, allow_unicode=True)


def given_recipe(text: str, *options: str) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        Path("mine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        return [*FIT, *options]

    return prepare


PICTURE = io.BytesIO()
Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(PICTURE, "PNG")
JPEG = io.BytesIO()
Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(JPEG, "JPEG")
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    real = draw(st.sampled_from([PICTURE.getvalue(), JPEG.getvalue()]))
    at = draw(st.integers(0, len(real)))
    noise = draw(st.binary(max_size=20))
    return draw(st.sampled_from([real, real, real, real[:at], real[:at] + noise + real[at + len(noise) :], noise]))


FOLDERS = st.dictionaries(NAMES, st.dictionaries(NAMES, contents(), max_size=6), max_size=4)
ENDINGS = st.sampled_from([".png", ".jpg", ".gif", ".tiff", ".ppm", ".webp", ".txt", ""])


def make_folder(classes: dict[str, dict[str, bytes]], ending: str, where: str) -> None:
    """Writes images into pictures/<where>/<class>/."""
    root = Path("pictures")
    root.mkdir()
    for name, files in classes.items():
        with contextlib.suppress(OSError):  # names that are too long, or a dot
            (root / where / name).mkdir(parents=True)
            for file, content in files.items():
                (root / where / name / f"{file}{ending}").write_bytes(content)


def given_folder(classes: dict[str, dict[str, bytes]], ending: str, where: str) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        make_folder(classes, ending, where)
        return [
            "fit", "--model=MLPClassifier", "--model.width=4", "--model.depth=1", "--data=ImageFolder",
            "--data.root=pictures", "--data.image_size=4", "--data.batch_size=1", "--trainer.fast_dev_run=true",
            "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        ]  # fmt: skip

    return prepare


PLACES = st.sampled_from([".", "train", "a/b"])


#: Variables that the package reads itself; those of Weights & Biases have a test of their own.
VARIABLES = st.dictionaries(
    st.sampled_from(["PL_GLOBAL_SEED", "ZOO_CACHE", "XDG_CACHE_HOME", "HF_ENDPOINT", "MASTER_PORT", "SLURM_JOB_ID"]),
    st.sampled_from(["", " ", "x", "-1", "1e9", "9" * 30, "/proc/x", "~nobody/x", "http://[", "\n", "a" * 3000, "é"]),
    min_size=1,
    max_size=3,
)


def answers_in(variables: dict[str, str]) -> None:
    """A run in an environment with these variables, whose data is kept on disk, is answered."""

    def prepare() -> list[str]:
        make_folder({"a": {str(number): PICTURE.getvalue() for number in range(8)}}, ".png", "train")
        return [
            "fit", "--model=MLPClassifier", "--model.width=4", "--model.depth=1", "--data=ImageFolder",
            "--data.root=pictures", "--data.image_size=4", "--data.batch_size=2", "--data.cache=disk",
            "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            "--seed_everything=false",
        ]  # fmt: skip

    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        for name, value in {"HOME": home, **variables}.items():
            patch.setenv(name, value)
        answers(prepare, train=True)


def user_error(call: Callable[[], object]) -> str:
    """Message of the UserError that a call raises, empty if it raises none."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@many
@given(spoiled_text())
def test_a_spoiled_file_is_a_recipe_or_a_user_error_says_why_not(text):
    """Before the parser: the file itself."""
    with in_a_new_folder():
        Path("mine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        message = user_error(lambda: check_recipe("mine.yaml"))
    assert not message or message.startswith("mine.yaml")


@many
@given(FOLDERS, ENDINGS, PLACES)
def test_a_spoiled_folder_is_read_or_a_user_error_says_why_not(classes, ending, where):
    """The data module itself, without a command."""
    with in_a_new_folder():
        make_folder(classes, ending, where)
        built: list[ImageFolder] = []

        def build() -> None:
            built.append(ImageFolder("pictures", image_size=4, batch_size=1))
            built[0].setup("fit")

        if not user_error(build):
            x, y = built[0].split("train")
            assert x.shape == (len(y), *built[0].input_shape)


@quick
@given(spoiled_text())
def test_a_spoiled_text_of_a_recipe_is_answered(text):
    answers(given_recipe(text))


@quick
@given(spoiled_values())
def test_spoiled_values_of_a_recipe_are_answered(text):
    answers(given_recipe(text))


@quick
@given(FOLDERS, ENDINGS, PLACES)
def test_a_spoiled_folder_of_images_is_answered(classes, ending, where):
    answers(given_folder(classes, ending, where), train=True)


@settings(quick, max_examples=3)
@given(VARIABLES)
def test_a_spoiled_environment_is_answered(variables):
    answers_in(variables)


@pytest.mark.slow
@thorough
@given(VARIABLES)
def test_many_spoiled_environments_are_answered(variables):
    answers_in(variables)


@pytest.mark.slow
@thorough
@given(spoiled_text())
def test_many_spoiled_texts_of_recipes_are_answered(text):
    answers(given_recipe(text))


@pytest.mark.slow
@thorough
@given(spoiled_values())
def test_many_spoiled_values_of_recipes_are_answered(text):
    answers(given_recipe(text))


@pytest.mark.slow
@thorough
@given(FOLDERS, ENDINGS, PLACES)
def test_many_spoiled_folders_of_images_are_answered(classes, ending, where):
    answers(given_folder(classes, ending, where), train=True)


@pytest.mark.slow
@settings(thorough, max_examples=thorough.max_examples // 2)
@given(spoiled_values())
def test_spoiled_values_that_can_be_trained_with_are_answered(text):
    short = ["max_steps=2", "limit_val_batches=1", "limit_train_batches=2", "enable_progress_bar=false"]
    answers(given_recipe(text, *(f"--trainer.{option}" for option in short)), train=True)
