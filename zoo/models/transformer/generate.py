"""Text generation: sampling from a language model token by token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.errors import NonFiniteError, UserError, check_at_least
from zoo.models.precision import float64_device
from zoo.models.transformer.network import LanguageModel


def check_sampling_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises a `UserError` that names the first argument of `next_token_probs` that is out of range."""
    check_at_least(0, temperature=temperature)
    check_at_least(1, top_k=top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1")


def next_token_probs(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Probabilities of the next token, after temperature, top-k and top-p filtering.

    Args:
        logits: logits, (N, V).
        temperature: divisor of the logits; 0 for the most probable token only.
        top_k: number of most probable tokens to keep (Fan et al. 2018, arXiv 1805.04833, section 5.4).
        top_p: cumulative probability of the most probable tokens to keep (nucleus sampling, Holtzman et al. 2020,
            arXiv 1904.09751, section 3.1); applied after `top_k`.

    Returns:
        (N, V), each row summing to 1.
    """
    check_sampling_options(temperature, top_k, top_p)
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    likeliest, order = (logits / temperature).sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        likeliest[:, top_k:] = -torch.inf
    p = likeliest.softmax(1)
    if top_p is not None:
        p = p.masked_fill(p.cumsum(1) - p >= top_p, 0.0)  # the token that reaches top_p is kept
        p = p / p.sum(1, keepdim=True)
    return torch.zeros_like(p).scatter_(1, order, p)


def sample_token(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Samples a token, int64 (N,), for each row of probabilities (N, V); the random number is drawn on the CPU."""
    device = generator.device if generator else None
    totals = p.to(float64_device(p.device)).double().cumsum(1)
    u = torch.rand(len(p), 1, generator=generator, device=device, dtype=torch.float64).to(totals.device)
    token = torch.searchsorted(totals, u * totals[:, -1:], right=True).squeeze(1).clamp_max(p.shape[1] - 1)
    return token.to(p.device)


@torch.no_grad()
def generate(
    network: LanguageModel,
    prompt: Tensor,
    max_new_tokens: int,
    context_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Continues a prompt; yields each token, int64 (N,), as soon as it is sampled.

    Keys and values are cached, so that a token costs the work of one position. When the context is full, generation
    continues from its second half.

    Args:
        network: language model in eval mode.
        prompt: tokens to continue, int64 (N, T), T at least 1.
        max_new_tokens: number of tokens to generate.
        context_length: maximum number of tokens that the network attends to.
        temperature: see `next_token_probs`, as for the next two.
        top_k: number of most probable tokens to keep.
        top_p: cumulative probability of the tokens to keep.
        generator: random number generator; torch's global one by default.
        cached: cache keys and values; without, the result is the same and slower.
    """
    context, caches = prompt[:, -context_length:], network.stack.caches()
    new = context
    for _ in range(max_new_tokens):
        if context.shape[1] > context_length:
            context, caches = context[:, -max(1, context_length // 2) :], network.stack.caches()
            new = context
        logits = (network(new, caches) if cached else network(context))[:, -1].float()
        if logits.isnan().any():
            raise NonFiniteError(
                "the model's logits are NaN: its weights are damaged, or training had diverged; take another checkpoint"
            )
        token = sample_token(next_token_probs(logits, temperature, top_k, top_p), generator)
        yield token
        new = token.unsqueeze(1)
        context = torch.cat([context, new], dim=1)
