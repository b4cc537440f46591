"""What the pages name exists: files, links, recipes, options, classes; and README.md stays short."""

import dataclasses
import inspect
import re
import subprocess

import pytest
from lightning.pytorch import Trainer

from tests.helpers.command import CHECKOUT
from tests.integration.docs.pages import OTHERS, PAGES, Page
from zoo.registry import entries, recipe_files, space_files
from zoo.tracking.run_folders import RunOptions
from zoo.tracking.wandb import WandbOptions

README = PAGES[0]
every_page = pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)


def make_prints(target: str, *variables: str) -> list[str]:
    command = ["make", "--dry-run", "--always-make", target, *variables]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return done.stdout.replace("--quiet ", "").splitlines()


def test_make_prints_the_commands_that_the_readme_names():
    plans = [make_prints(target, "LOCKED=no") for target in ("gan", "test")]
    lines = [line for block in README.blocks for line in block.text.splitlines()]
    typed = [line for line in lines if line.startswith((".venv/bin", "python3 -m venv"))]
    assert len(typed) == 4
    for line in typed:
        assert any(line in plan for plan in plans), line


def test_make_installs_from_the_lock_as_the_page_says():
    (page,) = [page for page in PAGES if page.name == "docs/index.md"]
    lines = [line for block in page.blocks for line in block.text.splitlines()]
    typed = [line for line in lines if "--require-hashes" in line or "--no-build-isolation" in line]
    printed = make_prints("test", "LOCKED=yes")
    assert len(typed) == 2 and set(typed) <= set(printed)
    assert sum("pip install" in line for line in printed) == 2, "nothing is installed without a hash"


def test_readme_is_short():
    assert len(README.path.read_bytes()) <= 10_000


def test_every_page_is_in_the_nav():
    pages = {f"docs/{path.relative_to(CHECKOUT / 'docs').as_posix()}" for path in (CHECKOUT / "docs").rglob("*.md")}
    assert {page.name for page in PAGES} == pages | {"README.md"}


@every_page
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.prose):
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.is_file(), target
        if anchor:
            assert anchor in Page(str(file.relative_to(CHECKOUT))).anchors, target


@every_page
def test_paths_that_are_named_exist(page):
    folders = r"(?:zoo|datamodules|callbacks|docs|examples|tests|benchmarks|\.ci)"
    for path, placeholder in re.findall(rf"(?<![\w/.])({folders}/[\w./-]*\w/?)(<?)", page.text):
        assert (CHECKOUT / (path.rpartition("/")[0] if placeholder else path)).exists(), path


@every_page
def test_code_with_a_title_is_an_excerpt_of_that_file(page):
    for block in page.blocks:
        if block.title:
            shown, there = _lines(block.text), _lines((CHECKOUT / block.title).read_text(encoding="utf-8"))
            starts = range(len(there) - len(shown) + 1)
            assert any(there[start : start + len(shown)] == shown for start in starts), (block.title, block.text)


def _lines(text: str) -> list[str]:
    """Lines without indentation, which an excerpt does not share, and without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


@every_page
def test_recipes_that_are_named_exist(page):
    # Of a run, of a saved model, of the reader's own, a typing error, and of an example.
    own = {
        "config.yaml", "training.yaml", "my_recipe.yaml", "gna.yaml", "vae.yaml", "sweep.yaml", "best.yaml",
        "space.yaml",
    }  # fmt: skip
    for recipe in set(re.findall(r"(?<![\w/>])[\w-]+\.yaml\b", page.text)) - own:
        assert recipe in recipe_files() | space_files(), recipe


def options_by_section() -> dict[str, set[str]]:
    """Arguments that the sections of a configuration have, by section."""
    known = {
        kind: {
            name
            for entry in entries(kind)
            for base in inspect.getmro(entry.load())
            if "__init__" in vars(base)
            for name in inspect.signature(base.__init__).parameters
        }
        for kind in ("models", "data")
    }
    return {
        "model": known["models"] | {"help"},
        "data": known["data"],
        "trainer": set(inspect.signature(Trainer).parameters),
        "run": {field.name for field in dataclasses.fields(RunOptions)},
        "wandb": {field.name for field in dataclasses.fields(WandbOptions)},
    }


@every_page
def test_options_that_are_named_exist(page):
    known = options_by_section()
    for section, name in re.findall(r"--(model|data|trainer|run|wandb)\.(\w+)", page.text):
        if name.islower():  # not a placeholder
            assert name in known[section], f"--{section}.{name}"


@every_page
def test_benchmarks_take_the_options_that_are_named(page):
    for name, arguments in re.findall(r"python\s+-m\s+benchmarks\.([a-z_]+)([^`;#]*)", page.text):
        folder = CHECKOUT / "benchmarks" / name
        source = (folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w.]+", arguments):
            of_fit = option.startswith(("--model.", "--data.", "--trainer."))  # which are handed on, and checked above
            assert f'"{option}"' in source or of_fit, f"{name} {option}"


def test_everything_in_the_registry_is_named():
    text = "".join(page.text for page in PAGES)
    for entry in entries("models", "data", "callbacks", "recipes", "spaces"):
        assert f"`{entry.name}`" in text, f"{entry.name} is not in README.md or docs/"


def test_every_module_is_in_the_reference():
    text = "".join(page.text for page in PAGES if "/reference/" in page.name)
    left_out = {"cli", "configs", "weights", "_lightning.py"}
    for folder in ("zoo", "datamodules", "callbacks"):
        for path in (CHECKOUT / folder).rglob("*.py"):
            parts = path.relative_to(CHECKOUT / folder).with_suffix("").parts
            if path.name == "__init__.py" or left_out & {parts[0], path.name}:
                continue
            module = ".".join((*(("zoo",) if folder == "zoo" else ("zoo", folder)), *parts))
            assert f"::: {module}\n" in text, f"{module} is not in docs/reference/"


def test_every_module_in_the_reference_exists():
    for page in PAGES:
        for module in re.findall(r"^::: zoo\.(\S+)$", page.text, re.MULTILINE):
            path = module.replace(".", "/") + ".py"
            root = CHECKOUT if module.startswith(("datamodules.", "callbacks.")) else CHECKOUT / "zoo"
            assert (root / path).is_file(), module


def test_the_license_exists():
    assert (CHECKOUT / "LICENSE").is_file()


def test_every_test_that_the_page_on_reliability_names_exists():
    (page,) = [page for page in PAGES if page.name == "docs/reliability.md"]
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", page.text)
    assert len(named) > 50
    for path, name in named:
        assert f"def {name}(" in (CHECKOUT / path).read_text(encoding="utf-8"), f"{path}::{name}"
