"""Text of a language model, shown while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.files import TEXT_SEPARATOR

MAX_TOKENS_PER_CHARACTER = 4  # bytes of a character in UTF-8


def decode_stream(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Decodes tokens one by one; a character that spans several tokens is yielded when it is complete.

    Args:
        tokens: token ids.
        decode: tokens to text, with the replacement character for incomplete characters.
    """
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = decode(pending)
        if not text.endswith("\ufffd") or len(pending) >= MAX_TOKENS_PER_CHARACTER:
            yield text
            pending = []
    if pending:
        yield decode(pending)


def generate_texts(
    model: Any, n: int, generator: torch.Generator, show: Callable[[str], object], options: dict[str, Any]
) -> str:
    """Generates `n` texts with a language model, one after the other.

    Args:
        model: model with `stream(n, *, generator, **options)`, which yields tokens (n,), and a `tokenizer`.
        n: number of texts.
        generator: random number generator.
        show: callback that receives each piece of text, the prompt first, as soon as it is generated.
        options: keyword arguments of `stream`.

    Returns:
        All pieces that were passed to `show`, joined.
    """
    shown: list[str] = []

    def put(piece: str) -> None:
        shown.append(piece)
        show(piece)

    for index in range(n):
        tokens: Iterator[Tensor] = model.stream(1, generator=generator, **options)
        if index:
            put(TEXT_SEPARATOR)
        put(options.get("prompt", "").lstrip("\n"))
        for piece in decode_stream((int(token) for token in tokens), model.tokenizer.decode):
            put(piece)
    return "".join(shown)
