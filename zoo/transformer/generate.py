"""Writing token by token: what a language model says is likely, narrowed down, and a draw from that."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.errors import UserError, check_at_least
from zoo.transformer.network import LanguageModel


def check_narrowing(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises a `UserError` that names the first of `narrow`'s arguments which is out of range."""
    check_at_least(0, temperature=temperature)
    check_at_least(1, top_k=top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1")


def narrow(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Probabilities to draw the next token from.

    Args:
        logits: (N, V).
        temperature: the logits are divided by it; 0 leaves the likeliest token alone.
        top_k: keep so many of the likeliest tokens (Fan et al. 2018, arXiv 1805.04833, section 5.4).
        top_p: keep the fewest of the likeliest tokens that together have this probability (nucleus sampling, Holtzman
            et al. 2020, arXiv 1904.09751, section 3.1); after `top_k`.

    Returns:
        (N, V), each row summing to 1.
    """
    check_narrowing(temperature, top_k, top_p)
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    likeliest, order = (logits / temperature).sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        likeliest[:, top_k:] = -torch.inf
    p = likeliest.softmax(1)
    if top_p is not None:
        p = p.masked_fill(p.cumsum(1) - p >= top_p, 0.0)  # the one that reaches top_p stays
        p = p / p.sum(1, keepdim=True)
    return torch.zeros_like(p).scatter_(1, order, p)


def draw(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token for each row of probabilities (N, V), int64 (N,), by a random number that is drawn on the CPU."""
    device = generator.device if generator else None
    u = torch.rand(len(p), 1, generator=generator, device=device, dtype=torch.float64).to(p.device)
    totals = p.double().cumsum(1)
    return torch.searchsorted(totals, u * totals[:, -1:], right=True).squeeze(1).clamp_max(p.shape[1] - 1)


@torch.no_grad()
def generate(
    network: LanguageModel,
    prompt: Tensor,
    length: int,
    context: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Writes on from a prompt; yields each token, int64 (N,), as soon as it is drawn.

    Keys and values of what was read are kept, so that a token costs one position's work. The network sees `context`
    tokens at most, as in training: where they are full, it goes on from the last half of them.

    Args:
        network: the language model, in evaluation mode.
        prompt: int64 (N, T), T at least 1.
        length: tokens to write.
        context: tokens that the network sees at most.
        temperature: see `narrow`, as for the next two.
        top_k: tokens that are kept.
        top_p: probability that is kept.
        generator: random numbers; torch's own where it is None.
        cached: False computes all positions anew for each token, which gives the same, only slower.
    """
    read, caches = prompt[:, -context:], network.stack.caches()
    unread = read
    for _ in range(length):
        if read.shape[1] > context:
            read, caches = read[:, -max(1, context // 2) :], network.stack.caches()
            unread = read
        logits = network(unread, caches) if cached else network(read)
        token = draw(narrow(logits[:, -1].float(), temperature, top_k, top_p), generator)
        yield token
        unread = token.unsqueeze(1)
        read = torch.cat([read, unread], dim=1)
