"""The program as the user typed it, for usage lines and for commands that are printed to be typed next."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo.errors import as_word

NAME = "zoo"


def program() -> str:
    """How this program is started: `python cli.py` in a checkout, `zoo` where it is installed."""
    script = Path(sys.argv[0])
    if script.name == "cli.py":
        return f"{python()} {as_word(script)}"
    return as_word(script) if script.name == NAME and not _on_path(NAME) else NAME


def python() -> str:
    """How this Python is started: `python` if the shell finds it by this name, else as it was started."""
    typed = next(iter(sys.orig_argv), sys.executable)
    return "python" if typed == "python" or _on_path("python") else as_word(typed)


def wandb_program() -> str:
    """How the program of Weights & Biases is started: `wandb` if the shell finds it, else as a module."""
    return "wandb" if _on_path("wandb") else f"{python()} -m wandb"


def _on_path(name: str) -> bool:
    """Whether the shell finds a program by its name, and it is that of this Python's environment."""
    from shutil import which  # slow to import, and not needed for every command

    found = which(name)
    return found is not None and Path(found).parent == Path(sys.executable).parent
