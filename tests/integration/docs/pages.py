"""The pages of the documentation, README.md included: their code blocks, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.helpers.command import CHECKOUT

SITE = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"))


class Block(NamedTuple):
    """A fenced block: its language, the file that its title names and that it is an excerpt of, and its text."""

    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Page:
    """One page, by its path in the repository."""

    name: str

    @property
    def path(self) -> Path:
        return CHECKOUT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', self.text, re.DOTALL | re.MULTILINE)
        return [Block(*parts) for parts in found]

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)

    @property
    def commands(self) -> list[str]:
        """The lines `python cli.py ...` of its bash blocks, without comments."""
        lines = [line for block in self.blocks if block.language == "bash" for line in block.text.splitlines()]
        return [line.split("  #")[0].strip() for line in lines if line.startswith("python cli.py ")]

    @property
    def anchors(self) -> set[str]:
        """The anchors of its headings, as MkDocs and GitHub make them."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in headings}


def _in_nav(entry: Any) -> list[str]:
    """Paths of a nav entry of mkdocs.yml, in order."""
    if isinstance(entry, str):
        return [entry]
    return [path for part in (entry if isinstance(entry, list) else entry.values()) for path in _in_nav(part)]


#: README.md, then the pages of the site in the order of its nav, which is that in which their commands are run.
PAGES = [Page("README.md"), *(Page(f"docs/{path}") for path in _in_nav(SITE["nav"]))]
#: Pages that are not part of the site.
OTHERS = [
    Page("CONTRIBUTING.md"),
    Page("CHANGELOG.md"),
    *(Page(path.relative_to(CHECKOUT).as_posix()) for path in sorted((CHECKOUT / "examples").rglob("README.md"))),
]

#: Options for a quick figure of each section of the tour.
QUICK_TOUR = {
    "attention": ["--keys=8", "--length=8", "--shift=2"],
    "optimizers": ["--steps=5", "--train_steps=3", "--rates=2", "--seeds=1"],
    "vanishing": ["--depth=4", "--width=8", "--steps=2", "--images=16"],
    "residuals": ["--blocks=2", "--steps=2", "--images=20", "--rate_steps=1", "--rates=2"],
    "stopping": ["--images=20", "--epochs=2", "--seeds=2", "--steps=2"],
    "dropout": ["--images=20", "--steps=2", "--passes=2", "--networks=2", "--seeds=1"],
    "equilibrium": ["--steps=3", "--game_steps=3"],
    "backwards": ["--n=200", "--steps=5", "--training=3"],
    "generation": ["--images=2", "--levels=1", "--repeats=1", "--steps=6", "--edit_steps=2", "--train_steps=1"],
}
