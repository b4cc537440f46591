"""Text on a page: a language model that writes on, and an encoder-decoder that answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from zoo.errors import UserError, check_at_most, check_seed
from zoo.hub.texts import stream_text
from zoo.models.base import eval_mode

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
    """The target that an encoder-decoder decodes for a source.

    Args:
        model: model that offers `zoo.contracts.Transduction`.
        text: a character for each token, if these have names of one character; else numbers of tokens.

    Raises:
        UserError: the text has unknown tokens, or more than the model takes.
    """
    names = _token_names(model)
    tokens = _tokens_of(model, text, names)
    length = model.input_shape[0]
    if not 0 < len(tokens) < length:
        raise UserError(f"the source has {len(tokens)} tokens; give 1 to {length - 1}")
    row = [*tokens, model.end] + [model.padding] * (length - len(tokens) - 1)
    device = next(model.parameters()).device
    with eval_mode(model):
        target = model.greedy_decode(torch.tensor([row], device=device))[0].tolist()
    target = target[: target.index(model.end)] if model.end in target else target
    return "".join(names[token] for token in target) if names else " ".join(map(str, target))


def source_hint(model: Any) -> str:
    """What a source is made of, in one line."""
    names = _token_names(model)
    most = model.input_shape[0] - 1
    if names:
        known = "".join(sorted({name for name in names if name != "?"}))
        return f"1 to {most} of the characters {known}"
    return f"1 to {most} numbers of tokens, 0 to {model.num_classes - 1}, with spaces between them"


def _token_names(model: Any) -> list[str]:
    """Names of the tokens, one of a single character each, but for the special ones; empty if they are unknown.

    A special token in a target is shown as a question mark.
    """
    names = getattr(getattr(model, "trained_on", None), "class_names", None) or ()
    if len(names) != model.num_classes or not any(len(name) == 1 for name in names):
        return []
    return [name if len(name) == 1 else "?" for name in names]


def _tokens_of(model: Any, text: str, names: list[str]) -> list[int]:
    if names:
        index = {name: token for token, name in enumerate(names) if name != "?"}
        unknown = next((character for character in text.strip() if character not in index), None)
        if unknown is not None:
            raise UserError(f"the character {unknown!r} is not a token of the model; it has {source_hint(model)}")
        return [index[character] for character in text.strip()]
    words = text.split()
    wrong = next((word for word in words if not (word.isdecimal() and int(word) < model.num_classes)), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is not a token of the model; give {source_hint(model)}")
    return [int(word) for word in words]
