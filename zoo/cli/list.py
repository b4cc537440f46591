"""The command `list`."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import UserError, did_you_mean
from zoo.registry import KINDS, entries

#: Kinds that a word stands for: `list models` names the classes and the trained models.
WORDS = {**{kind: (kind,) for kind in KINDS if " " not in kind}, "models": ("models", "trained models")}


def run_list(args: Sequence[str]) -> None:
    """Prints what is in the zoo, plugins included, or what there is of some kinds."""
    words = args[1:]
    for word in words:
        if word not in WORDS:
            raise UserError(f"list {word}: there is no such kind of things{did_you_mean(word, WORDS)}")
    wanted = [kind for word in words for kind in WORDS[word]]
    kind = None
    for entry in entries(*wanted):
        if entry.kind != kind:
            kind = entry.kind
            print(f"{kind}:")
        print(f"  {entry.name:<28} {entry.summary}")
