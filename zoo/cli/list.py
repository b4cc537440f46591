"""The command `list`."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import UserError
from zoo.registry import entries


def run_list(args: Sequence[str]) -> None:
    """Prints what is in the zoo, plugins included."""
    if len(args) > 1:
        raise UserError(f"list takes no arguments, not {' '.join(args[1:])}")
    kind = None
    for entry in entries():
        if entry.kind != kind:
            kind = entry.kind
            print(f"{kind}:")
        print(f"  {entry.name:<28} {entry.summary}")
