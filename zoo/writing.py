"""Text from a language model, as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.pictures import unused_path

RULE = "\n" + "-" * 40 + "\n"  # between two texts
LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens at most


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of tokens, piece by piece: a character of several tokens comes when it is whole.

    Args:
        tokens: one after the other.
        decode: tokens to text, with the replacement character for what is no text yet.
    """
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = decode(waiting)
        if not text.endswith("\ufffd") or len(waiting) >= LONGEST_CHARACTER:
            yield text
            waiting = []
    if waiting:
        yield decode(waiting)


def write_texts(
    model: Any, n: int, generator: torch.Generator, show: Callable[[str], object], options: dict[str, Any]
) -> str:
    """Lets a language model write `n` texts, one after the other.

    Args:
        model: with `stream(n, *, generator, **options)`, which yields tokens (n,), and a `tokenizer`.
        n: how many.
        generator: random numbers.
        show: is given each piece of text, the prompt first, as soon as it is written.
        options: of `stream`.

    Returns:
        All that was shown.
    """
    written: list[str] = []

    def put(piece: str) -> None:
        written.append(piece)
        show(piece)

    for index in range(n):
        tokens: Iterator[Tensor] = model.stream(1, generator=generator, **options)
        if index:
            put(RULE)
        put(options.get("prompt", "").lstrip("\n"))
        for piece in pieces((int(token) for token in tokens), model.tokenizer.decode):
            put(piece)
    return "".join(written)


def save_texts(path: Path, texts: list[str]) -> None:
    """Writes texts, with a rule between them, to a file that is not there yet, or to one beside it."""
    path = unused_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RULE.join(texts) + "\n", encoding="utf-8")
