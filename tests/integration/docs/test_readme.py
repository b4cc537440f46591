"""The README's promises: its commands are run, its code is run, and what it names is there."""

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.command import CHECKOUT, TINY, run_program
from zoo.registry import recipe_files

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.startswith("python cli.py")
]


def test_make_prints_the_commands_that_the_readme_names():
    plans = {
        target: subprocess.run(
            ["make", "--dry-run", "--always-make", target], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout
        for target in ("gan", "test")
    }
    typed = [
        line for _, block in BLOCKS for line in block.splitlines() if line.startswith((".venv/bin", "python3 -m venv"))
    ]
    assert len(typed) == 4
    for line in typed:
        plain = line.replace("--quiet ", "")
        assert any(plain in plan.replace("--quiet ", "") for plan in plans.values()), line


def belongs_to(command: str) -> str:
    """The run that a command reads, or begins: what it needs was made by commands about the same run."""
    found = re.search(r"runs/(\w+)/", command) or re.search(r"--config (\w+)\.yaml", command)
    return found[1] if found else ""


def run_in_order(commands: list[str], folder: Path) -> str:
    """Returns the first command that failed, and what it said."""
    for command in commands:
        arguments = shlex.split(command)[2:]
        if arguments[0] == "fit":
            arguments += [*TINY, "--trainer.limit_val_batches=2"]
            if "--trainer.devices" in command:
                arguments.remove("--trainer.accelerator=cpu")
        done = run_program(*arguments, cwd=folder, timeout=900, WANDB_MODE="disabled", OMP_NUM_THREADS="1")
        if done.returncode:
            return f"{command}\n{done.stderr[-2000:]}"
    return ""


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(tmp_path, shared_data):
    """As they stand, but for the length of training, and for the folders of data that everybody has elsewhere.

    Two at a time, which takes half as long on two cores; those about the same run keep their order.
    """
    from PIL import Image

    assert len(COMMANDS) > 10
    for kind, green in {"cats": 20, "dogs": 200}.items():
        pictures = tmp_path / "my_pictures" / kind
        pictures.mkdir(parents=True)
        for index in range(100):
            Image.new("RGB", (70 + index, 90), (2 * index, green, 90)).save(pictures / f"{index}.jpg")
    (tmp_path / "data").symlink_to(shared_data)
    (tmp_path / "tinyshakespeare.txt").symlink_to(shared_data / "text" / "tinyshakespeare.txt")
    streams: dict[str, list[str]] = {}
    for command in COMMANDS:
        streams.setdefault(belongs_to(command), []).append(command)
    with ThreadPoolExecutor(2) as pool:
        for failure in pool.map(lambda commands: run_in_order(commands, tmp_path), streams.values()):
            assert not failure, failure
    for name in ("grid.png", "raw.npz", "ways.png", "walk.gif", "film.gif", "predictions.csv", "predictions.parquet"):
        assert (tmp_path / name).stat().st_size > 1000
    for name in ("inpainted", "inpaint", "varied", "eight", "way", "same", "clean", "large"):
        assert (tmp_path / f"{name}.png").is_file()


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_the_code_of_the_readme_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(tuple(sevens.shape), sevens.abs().max().item() <= 1)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(16, 1, 8, 8) True")


def test_what_the_readme_names_is_there():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (CHECKOUT / path).is_file(), path
    for recipe in set(re.findall(r"\b[\w-]+\.yaml\b", README)) - {"config.yaml"}:
        assert recipe in recipe_files(), recipe


def test_no_file_of_the_project_is_missing_from_the_table_of_contents():
    from zoo.registry import entries

    for entry in entries():
        if entry.kind in ("models", "recipes", "data"):
            assert f"`{entry.name}`" in README, f"{entry.name} has no place in the README"
    assert Path(CHECKOUT / "LICENSE").is_file()
