"""Text on a page: a language model that writes on, and an encoder-decoder that answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from zoo.errors import check_at_most, check_seed
from zoo.hub.texts import stream_text

#: Arguments of `stream` that the page fills in; its others are fields.
CONTRACT = ("n", "labels", "generator", "prompt")
MOST_TOKENS = 10_000


def write(model: Any, prompt: str, seed: int, options: Mapping[str, Any]) -> Iterator[str]:
    """Continues a text; yields all of it, the prompt included, whenever a piece has been added.

    Args:
        model: model that offers `zoo.contracts.TextStream`.
        prompt: beginning of the text; empty for the model's own.
        seed: random seed.
        options: further keyword arguments of the model's `stream`.

    Raises:
        UserError: an argument is out of range, or the prompt has characters that the model does not know.
    """
    check_seed(seed=seed)
    check_at_most(MOST_TOKENS, max_new_tokens=options.get("max_new_tokens"))
    start = {"prompt": prompt} if prompt else {}
    text = ""
    for piece in stream_text(model, torch.Generator().manual_seed(seed), {**options, **start}):
        text += piece
        yield text


def transduce(model: Any, text: str) -> str:
    """The text that a model of sequences answers with.

    Args:
        model: model that offers `zoo.contracts.SequenceMapping`.
        text: a character for each token.

    Raises:
        UserError: the text has unknown tokens, or more or fewer than the model takes.
    """
    (answer,) = model.predict([text.strip()])
    return str(answer)


def source_hint(model: Any) -> str:
    """The characters that a source is made of, in one line; empty if the model does not name its tokens."""
    names = getattr(getattr(model, "trained_on", None), "class_names", None) or ()
    known = "".join(sorted(name for name in names if len(name) == 1))
    return f"1 to {model.input_shape[0] - 1} of the characters {known}" if known else ""
