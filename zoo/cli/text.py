"""Text of a language model, shown while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError
from zoo.files import TEXT_SEPARATOR, check_output, save_texts
from zoo.hub.loading import find_device
from zoo.hub.texts import stream_text


def sample_text(
    network: Any,
    options: dict[str, Any],
    n: int = 1,
    seed: int = 0,
    out: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> str:
    """Generates text and shows it while it is generated.

    Args:
        network: language model; see `generate_texts`.
        options: keyword arguments of its `stream`.
        n: number of texts.
        seed: random seed.
        out: .txt file to write as well (default: none).
        device: device, such as cuda:1; auto is cuda where there is one, then mps, then the CPU.
        overwrite: replace the file if it exists.

    Returns:
        A sentence that says what was generated.
    """
    target = find_device(device, "--device")
    if out is not None:
        if Path(out).suffix != ".txt":
            raise UserError(f"--out {out} is not a file for text; let it end in .txt, or leave it out")
        check_output(Path(out), overwrite)
    generator = torch.Generator().manual_seed(seed)
    text = generate_texts(network.to(target), n, generator, lambda piece: print(piece, end="", flush=True), options)
    print()
    written = f"{n} text{'s' if n > 1 else ''} of {type(network).__name__}"
    if out is None:
        return written
    save_texts(Path(out), [text], overwrite)
    return f"{written} in {out}"


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
        if index:
            put(TEXT_SEPARATOR)
        for piece in stream_text(model, generator, options):
            put(piece)
    return "".join(shown)
