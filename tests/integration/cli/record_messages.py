"""Records what the parser says to the mistakes of `test_bad_input.py`, for its quick tests.

Run it after the table or the parser has changed, from the checkout:

    python -m tests.integration.cli.record_messages
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import yaml

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.command import CHECKOUT
from tests.integration.cli.test_bad_input import CASES, RECORDED, make_checkpoints
from zoo.cli import messages
from zoo.cli.main import main


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def record(args: list[str]) -> str | None:
    """Runs a command that ends with a mistake; returns the parser's or Lightning's message, None if there is none."""
    said: list[str] = []

    def explain(message: str, options: Iterable[str] = ()) -> str:
        said.append(message)
        return reword(message, options)

    reword = messages.explain
    patches = [mock.patch(f"zoo.cli.{module}.explain", explain) for module in ("messages", "parser")]
    quiet = contextlib.redirect_stderr(io.StringIO())
    with patches[0], patches[1], quiet, contextlib.suppress(SystemExit):
        main(args)
    return said[-1] if said else None


class Dumper(yaml.SafeDumper):
    """Writes messages of several lines as they are."""


def _represent(dumper: yaml.Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _represent)


def run() -> None:
    recorded = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make = functools.cache(lambda name: make_checkpoint(name, folder))
        (folder / "checkpoints").mkdir()
        checkpoints = make_checkpoints(folder / "checkpoints", make)
        for index, (name, (case, _)) in enumerate(CASES.items()):
            # What Lightning says depends on the machine; around what the parser says stands the file of a search space.
            if name.startswith(("machine: ", "tune: ")):
                continue
            (folder / str(index)).mkdir()
            with in_folder(folder / str(index)):
                found = record(case(checkpoints) if callable(case) else case)
            if found is not None:
                found = re.sub("at 0x[0-9a-f]+", "at 0x0", found)
                recorded[name] = found.replace(place, "FOLDER").replace(str(CHECKOUT), "CHECKOUT")
    text = yaml.dump(recorded, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=110)
    RECORDED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run()
