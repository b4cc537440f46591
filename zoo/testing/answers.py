"""What checks compare, and how they say what does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor


class ContractError(AssertionError):
    """A contract does not hold. The message is one sentence: what does not hold, and how to mend it."""


def holds(condition: object, sentence: str) -> None:
    """Raises a `ContractError` with this sentence unless the condition is true."""
    if not condition:
        raise ContractError(sentence)


@contextmanager
def explained(sentence: str, remedy: str) -> Iterator[None]:
    """Turns any error inside the context into a `ContractError` of one sentence: what fails, why, and the remedy."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"{sentence} ({in_words(error)}); {remedy}") from error


def in_words(error: Exception) -> str:
    """Type and message of an error in one line."""
    return shorten(f"{type(error).__name__}: {error}", 300)


def first_of(names: list[str]) -> str:
    """The first of several names, and how many there are."""
    more = len(names) - 1
    return f"{names[0]}{f' and {more} more' if more else ''}" if names else ""


# Comparing


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists, with their paths."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from flat(part, f"{name}.{index}")
    else:
        yield name, value


def same(first: Any, second: Any) -> bool:
    """Whether two leaves are equal, tensors bit for bit, NaN equal to NaN."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return False
        nan = first.is_floating_point() or first.is_complex()
        equal = first.shape == second.shape and first.dtype == second.dtype
        return equal and torch.allclose(first, second, rtol=0, atol=0, equal_nan=nan)
    return bool(first == second) or (first != first and second != second)


def difference(first: Any, second: Any) -> str | None:
    """Path of the first leaf in which two nested values differ; None if they are equal."""
    one, two = dict(flat(first)), dict(flat(second))
    names = [*one, *(name for name in two if name not in one)]
    return next((n for n in names if n not in one or n not in two or not same(one[n], two[n])), None)


def plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings, None, lists and dictionaries."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)
