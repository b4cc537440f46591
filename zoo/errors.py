"""Errors that a user can fix, checks that raise them, and the wording of their one-line messages."""

from __future__ import annotations

import difflib
import os
import reprlib
import shlex
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A request that cannot be fulfilled. The message is one line that names the value and the fix.

    The command line prints the message without a traceback and exits with code 2. In other programs it is an ordinary
    ValueError.
    """


class NonFiniteError(ArithmeticError):
    """A loss, gradient, parameter or result became NaN or Inf. The command line exits with code 1."""


class UnresponsiveError(RuntimeError):
    """Other processes of a run do not answer. The command line exits with code 1."""


def check_choice(name: str, choice: str, choices: Iterable[str]) -> None:
    """Raises a `UserError` that lists the choices unless `choice` is one of them."""
    if choice not in choices:
        raise UserError(f"{name} is {choice!r}; choose one of {', '.join(choices)}")


def check_at_least(least: float, **values: float | None) -> None:
    """Raises a `UserError` that names the first value below `least`, or NaN. None is skipped."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{name} is {value}; it must be {f'at least {least}' if least else '0 or more'}")


def check_at_most(most: float, **values: float | None) -> None:
    """Raises a `UserError` that names the first value above `most`. None is skipped."""
    for name, value in values.items():
        if value is not None and value > most:
            raise UserError(f"{name} is {value}; it must be at most {most}")


def check_seed(**values: int) -> None:
    """Raises a `UserError` that names the first seed that is not in the range of NumPy and Lightning."""
    for name, value in values.items():
        if not 0 <= value < 2**32:
            raise UserError(f"{name} is {value}; it must be at least 0 and below 2**32")


def check_fraction(**values: float) -> None:
    """Raises a `UserError` that names the first value outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}; it must be at least 0 and below 1")


def one_line(message: str) -> str:
    """The message with line breaks and runs of white space replaced by single spaces."""
    return " ".join(message.split())


def shown(value: object) -> str:
    """A value of a file for a message: a short one in full, and of what is no plain value the type only."""
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def as_word(path: str | Path) -> str:
    """A path as a word of a command line: quoted for the shell, and relative if it lies in the working folder."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Suffix of a message about an unknown name: the most similar known name, or an empty string.

    Args:
        name: unknown name.
        known: valid names.
        cutoff: least similarity, in [0, 1], as in `difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suffix of a message about an unknown name: the most similar known name, or all of them."""
    known = list(known)
    return nearest(name, known) or f"; there are {', '.join(known)}"
