"""The program as it was typed."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from zoo.cli.main import main
from zoo.cli.program import program, wandb_program


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Function that sets the words with which the process was started, and the programs that the shell finds."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)

    def start(python: str, script: str, *on_path: str) -> None:
        for name in on_path:
            path = tmp_path / "bin" / name
            path.touch()
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3"))
        monkeypatch.setattr(sys, "orig_argv", [python, script])
        monkeypatch.setattr(sys, "argv", [script])

    return start


def test_a_checkout_is_started_by_python_as_it_was_typed(typed):
    typed("python", "cli.py")
    assert program() == "python cli.py"
    typed(".venv/bin/python", "cli.py")
    assert program() == ".venv/bin/python cli.py"
    typed("/opt/my env/bin/python", "../my zoo/cli.py")
    assert program() == "'/opt/my env/bin/python' '../my zoo/cli.py'"


def test_a_python_that_the_shell_finds_needs_no_path(typed):
    typed(str(Path("bin/python3").absolute()), str(Path("cli.py").absolute()), "python")  # as torchrun starts it
    assert program() == "python cli.py"


def test_the_installed_program_is_zoo_or_its_path_where_the_shell_does_not_find_it(typed):
    typed("python", "env/bin/zoo")
    assert program() == "env/bin/zoo"
    typed("python", str(Path("bin/zoo").absolute()), "zoo")
    assert program() == "zoo"
    typed("python", "notebook.py")
    assert program() == "zoo"


def test_wandb_is_started_as_a_module_where_the_shell_does_not_find_it(typed):
    typed("python", "cli.py")
    assert wandb_program() == "python -m wandb"
    typed("python", "cli.py", "wandb")
    assert wandb_program() == "wandb"


def test_garbage_is_not_searched_for_in_imports_of_a_program_and_a_caller_s_process_is_left_as_it_is(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    main(["list"])
    assert frozen == [] and gc.isenabled()
    monkeypatch.setattr(sys, "argv", ["zoo", "list"])
    main()
    assert frozen == [False] and gc.isenabled()
