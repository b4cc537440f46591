"""Commands about a run, with the places of its files left open until they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from zoo.errors import as_word

CHECKPOINT, CONFIG, RUN = "{checkpoint}", "{config}", "{run}"


class Command(NamedTuple):
    """A command to go on with.

    Attributes:
        purpose: what it is for.
        words: words after the program's name, in which `CHECKPOINT`, `CONFIG` and `RUN` stand for paths.
    """

    purpose: str
    words: str


def fill_in(words: str, folder: Path, checkpoint: str | Path, config: str = "config.yaml") -> str:
    """The words of a command with the paths of a run, quoted for the shell.

    Args:
        words: see `Command`.
        folder: folder of the run.
        checkpoint: path to the checkpoint.
        config: name of the configuration in the folder.
    """
    # Not by str.format, since words can come from a file.
    for name, path in ((CHECKPOINT, checkpoint), (CONFIG, folder / config), (RUN, folder)):
        words = words.replace(name, as_word(path))
    return words
