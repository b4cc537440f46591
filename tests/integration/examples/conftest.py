"""Examples are run in a copy of their folder, in this process; their modules are forgotten afterwards."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.command import CHECKOUT
from tests.integration.docs.pages import Page
from zoo.cli.main import main


class Example:
    """A copy of an example in the working folder.

    Attributes:
        commands: commands of its README, without those that install something or run its tests.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(CHECKOUT / "examples" / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs"))
        blocks = [block for block in Page(f"examples/{name}/README.md").blocks if block.language == "bash"]
        lines = [line.removeprefix("PYTHONPATH=. ") for block in blocks for line in block.text.splitlines()]
        self.commands = [line for line in lines if line.startswith(("python ", "zoo "))]

    def run(self, command: str, *options: str) -> None:
        """Runs a command: `zoo ...`, or `python SCRIPT ...` of a script with a function `main`."""
        program, *words = shlex.split(command)
        if program == "zoo":
            main([*words, *options])
        else:
            import_module(Path(words[0]).stem).main([*words[1:], *options])


@pytest.fixture
def enter(in_an_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Example]]:
    """Function that copies an example into the working folder, from which its modules are imported."""
    known = set(sys.modules)

    def enter_example(name: str) -> Example:
        monkeypatch.syspath_prepend(in_an_empty_folder)
        return Example(name, in_an_empty_folder)

    yield enter_example
    for name in set(sys.modules) - known:
        if str(in_an_empty_folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
