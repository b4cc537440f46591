"""Text of a language model, decoded while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

MAX_TOKENS_PER_CHARACTER = 4  # bytes of a character in UTF-8


def stream_text(model: Any, generator: torch.Generator, options: Mapping[str, Any]) -> Iterator[str]:
    """Generates a text piece by piece, the prompt first, without line breaks at its beginning.

    Args:
        model: model with `stream(n, *, generator, **options)`, which yields tokens (n,), and a `tokenizer`.
        generator: random number generator.
        options: keyword arguments of `stream`.
    """
    tokens = model.stream(1, generator=generator, **options)
    yield (options.get("prompt") or "").lstrip("\n")
    yield from decode_stream((int(token) for token in tokens), model.tokenizer.decode)


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
