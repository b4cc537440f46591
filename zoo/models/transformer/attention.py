"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2), with a cache of keys and values.

Plain torch. Shapes: N sequences of T positions, W channels, H heads of C = W / H channels; the keys have S positions.
Masks are True where a position may be attended to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.transformer.positions import rotate


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K' / sqrt(C)) (Vaswani et al. 2017, eq. 1), without a fused kernel.

    Args:
        q: queries, (N, H, T, C).
        k: keys, (N, H, S, C).
        mask: positions that may be attended to, broadcast against (N, H, T, S).

    Returns:
        Weights (N, H, T, S); each row sums to 1.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """Mask (queries, keys): the last `queries` of `keys` positions may attend to themselves and to earlier ones."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


@dataclass
class KVCache:
    """Keys and values (N, H, S, C) of the positions that an attention layer has processed."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends those of new positions; returns all."""
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.keys, self.values = k, v
        return k, v

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]


class MultiHeadAttention(nn.Module):
    """Multi-head attention (section 3.2.2): self-attention, or cross-attention to a memory, by torch's fused kernel.

    Args:
        width: number of channels W, a multiple of `heads`.
        heads: number of heads H.
        bias: use biases in the linear layers.
        qk_norm: normalize queries and keys to unit mean square, which bounds the scores at large learning rates (Henry
            et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442). Both then have the norm sqrt(C), so
            every score Q K' / sqrt(C) lies within ±sqrt(C), and two weights of a row differ by a factor of at most
            exp(2 sqrt(C)). There is no learned scale, as Henry et al. have, that could widen the bound.
    """

    def __init__(self, width: int, heads: int, bias: bool = False, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.qk_norm = qk_norm
        self.recorded: list[Tensor] | None = None

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (N, T, W) to (N, T, W).

        Args:
            x: sequence whose positions attend, (N, T, W).
            memory: sequence that is attended to, (N, S, W); x itself by default.
            mask: positions that may be attended to, broadcast against (N, H, T, S).
            causal: attend to no later position; instead of a mask.
            rotation: factors of rotary embeddings, (2, T, C), see `zoo.models.transformer.positions.rotation`.
            cache: keys and values of earlier positions; extended by those of x.
        """
        q = self._heads(self.q(x))
        k, v = (self._heads(part) for part in self.kv(x if memory is None else memory).chunk(2, dim=-1))
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if rotation is not None:
            rotation = rotation.to(q.dtype)
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        if causal and (self.recorded is not None or q.shape[2] != k.shape[2]):
            mask, causal = causal_mask(q.shape[2], k.shape[2], q.device), False
        if self.recorded is not None:
            weights = attention_weights(q, k, mask)
            self.recorded.append(weights.detach())
            h = weights @ v
        else:
            h = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.out(h.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(N, T, W) to (N, H, T, C)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@contextmanager
def record_attention(module: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Records attention weights inside the context: by the name of each attention layer, (N, H, T, S) per call.

    Inside the context the fused kernel is not used.
    """
    attentions = {name: m for name, m in module.named_modules() if isinstance(m, MultiHeadAttention)}
    maps: dict[str, list[Tensor]] = {name: [] for name in attentions}
    for name, attention in attentions.items():
        attention.recorded = maps[name]
    try:
        yield maps
    finally:
        for attention in attentions.values():
            cast(MultiHeadAttention, attention).recorded = None
