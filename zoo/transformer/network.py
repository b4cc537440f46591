"""The Transformer of "Attention is all you need": one block, used three ways.

Plain torch, after Vaswani et al. 2017 (arXiv 1706.03762). A stack of blocks reads a sequence; where it may look decides
what it is. A decoder looks back only and models language; an encoder looks everywhere and tells images apart, cut into
patches (Dosovitskiy et al. 2021, arXiv 2010.11929); an encoder and a decoder that also looks at what the encoder has
read translate, as in the paper. Every sub-layer is the lecture's y = F(x, w) + x.

Shapes: N sequences of T positions, W channels, H heads of C = W / H channels; a memory of S positions. Masks are True
where a position may be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Norm = Literal["pre", "post"]
Positions = Literal["rotary", "sinusoidal"]
NORMS, POSITIONS = ("pre", "post"), ("rotary", "sinusoidal")


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K' / sqrt(C)) (Vaswani et al. 2017, eq. 1), written out.

    Args:
        q: queries, (N, H, T, C).
        k: keys, (N, H, S, C).
        mask: broadcast against (N, H, T, S).

    Returns:
        How much each position looks at each, (N, H, T, S); each row sums to 1.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """The last `queries` of `keys` positions may look at themselves and at those before, (queries, keys)."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def sinusoids(length: int, width: int) -> Tensor:
    """The paper's positional encoding (section 3.5), (length, width): sines, then cosines, of falling frequencies."""
    angles = torch.outer(torch.arange(length).float(), frequencies(width))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def frequencies(width: int) -> Tensor:
    """10000^(-2i / width) for i = 0 to width / 2 - 1, in radians a position."""
    return 10_000.0 ** (-torch.arange(0, width, 2).float() / width)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, eq. 34): each pair of channels turns by its angle.

    Queries and keys that are turned this way have products that depend on the distance of their positions alone.

    Args:
        x: queries or keys, (N, H, T, C).
        angles: of each pair at each position, (T, C / 2); channel i is paired with channel i + C / 2.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@dataclass
class Cache:
    """Keys and values (N, H, S, C) that an attention has seen, so that the next position need not compute them anew."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds those of new positions; returns all of them."""
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.keys, self.values = k, v
        return k, v

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]


class Attention(nn.Module):
    """Multi-head attention (section 3.2.2), to the sequence itself or to a memory, by torch's fused kernel.

    Args:
        width: channels W, a multiple of `heads`.
        heads: H.
        bias: of the linear layers.
        qk_norm: bring queries and keys to unit mean square first, which keeps large learning rates from driving the
            scores apart (Henry et al. 2020, arXiv 2010.04245, as in Dehghani et al. 2023, arXiv 2302.05442).
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
        angles: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x (N, T, W) to (N, T, W).

        Args:
            x: what looks.
            memory: (N, S, W), what is looked at; x itself where it is not given.
            mask: of what may be looked at, broadcast against (N, H, T, S).
            causal: look at no later position; in place of a mask.
            angles: of rotary positions, (T, C / 2).
            cache: what was looked at before; extended by x.
        """
        q = self._heads(self.q(x))
        k, v = (self._heads(part) for part in self.kv(x if memory is None else memory).chunk(2, dim=-1))
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
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


class FeedForward(nn.Sequential):
    """The network that each position goes through alone (section 3.3), four times as wide inside."""

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__(nn.Linear(width, 4 * width, bias=bias), nn.GELU(), nn.Linear(4 * width, width, bias=bias))


class Block(nn.Module):
    """Attention to the sequence itself, to a memory where there is one, and a feed-forward network.

    Each is y = x + F(x), with the norm before F ("pre", Xiong et al. 2020, arXiv 2002.04745) or after the sum ("post",
    the paper), and dropout on F's output (section 5.4).

    Args:
        width: channels W.
        heads: H.
        dropout: share of the outputs of each sub-layer that is dropped in training.
        norm: where the norms are.
        memory: whether there is a memory to look at.
        bias: of linear layers and norms.
        qk_norm: see `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        norm: Norm = "pre",
        memory: bool = False,
        bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(width, heads, bias, qk_norm)
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.to_memory = Attention(width, heads, bias, qk_norm) if memory else None
        self.memory_norm = nn.LayerNorm(width, bias=bias) if memory else None
        self.feed_forward = FeedForward(width, bias)
        self.feed_forward_norm = nn.LayerNorm(width, bias=bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        angles: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x (N, T, W), memory (N, S, W) to (N, T, W); see `Attention` for the rest."""
        pre = self.norm == "pre"
        h = self.attention(self.attention_norm(x) if pre else x, None, mask, causal, angles, cache)
        x = x + self.dropout(h)
        x = x if pre else self.attention_norm(x)
        if self.to_memory is not None and self.memory_norm is not None:
            h = self.to_memory(self.memory_norm(x) if pre else x, memory, memory_mask)
            x = x + self.dropout(h)
            x = x if pre else self.memory_norm(x)
        h = self.feed_forward(self.feed_forward_norm(x) if pre else x)
        x = x + self.dropout(h)
        return x if pre else self.feed_forward_norm(x)


class Stack(nn.Module):
    """Blocks one after the other, and what tells them where each position is.

    Args:
        layers: number of blocks.
        width: channels W.
        heads: H.
        dropout: of each sub-layer's output, and of the sum of embeddings and positions.
        norm: see `Block`.
        memory: see `Block`.
        positions: "rotary", by turning queries and keys; "sinusoidal", added at the entrance; None where the input
            knows its positions already.
        bias: see `Block`.
        qk_norm: see `Attention`.
        checkpointing: keep no activations inside the blocks, but compute them anew on the way back: a third more time
            for a fraction of the memory.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        dropout: float = 0.0,
        norm: Norm = "pre",
        memory: bool = False,
        positions: Positions | None = "rotary",
        bias: bool = False,
        qk_norm: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.positions, self.checkpointing = width, positions, checkpointing
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, norm, memory, bias, qk_norm) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width, bias=bias) if norm == "pre" else nn.Identity()
        self.head_width = width // heads
        self.apply(self._initialize)
        # The sum of all branches then has the same variance at every depth (Radford et al. 2019, section 2.3).
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "feed_forward.2.weight")):
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1] * 2 * layers))

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """Embeddings x (N, T, W) to (N, T, W); with caches, x are the positions after those that these hold."""
        start = len(caches[0]) if caches else 0
        places = torch.arange(start, start + x.shape[1], device=x.device)
        angles = None
        if self.positions == "rotary":
            angles = torch.outer(places.float(), frequencies(self.head_width).to(x.device))
        elif self.positions == "sinusoidal":
            x = x + sinusoids(start + x.shape[1], self.width)[start:].to(x)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            arguments = (x, mask, causal, angles, memory, memory_mask, caches[index] if caches else None)
            keep_nothing = self.checkpointing and self.training
            x = checkpoint(block, *arguments, use_reentrant=False) if keep_nothing else block(*arguments)
        return self.final_norm(x)

    def caches(self) -> list[Cache]:
        """Empty caches, one for each block."""
        return [Cache() for _ in self.blocks]


class LanguageModel(nn.Module):
    """A decoder: logits of the token after each position, from those up to it.

    Args:
        vocabulary: number of tokens.
        layers: see `Stack`, as for the rest.
        width: channels W.
        heads: H.
        dropout: share.
        norm: pre or post.
        positions: rotary or sinusoidal.
        qk_norm: see `Attention`.
        checkpointing: see `Stack`.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "pre",
        positions: Positions = "rotary",
        qk_norm: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stack = Stack(layers, width, heads, dropout, norm, False, positions, False, qk_norm, checkpointing)
        self.embedding = Embedding(vocabulary, width)

    def forward(self, tokens: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """int64 (N, T) to logits (N, T, vocabulary); with caches, of the tokens after those that these hold."""
        return self.embedding.logits(self.stack(self.embedding(tokens), causal=True, caches=caches))


class Embedding(nn.Module):
    """Tokens to vectors of unit variance, and back to logits by the same matrix (section 3.4)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.weight = nn.Parameter(torch.randn(vocabulary, width) / self.scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (...) to (..., width)."""
        return F.embedding(tokens, self.weight) * self.scale

    def logits(self, x: Tensor) -> Tensor:
        """(..., width) to (..., vocabulary)."""
        return F.linear(x, self.weight)


class VisionTransformer(nn.Module):
    """An encoder of images: patches are its words, and their mean goes through a linear layer.

    Positions are sinusoids of row and column, and there is no class token, which Beyer et al. 2022 (arXiv 2205.01580)
    found to be no worse.

    Args:
        input_shape: of the images, (channels, height, width), with sides that `patch` divides.
        num_classes: number of logits.
        patch: side of the patches, in pixels.
        layers: see `Stack`, as for the rest.
        width: channels W, a multiple of 4.
        heads: H.
        dropout: share.
        norm: pre or post.
        checkpointing: see `Stack`.
    """

    places: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch: int = 4,
        layers: int = 6,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "pre",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape[0], input_shape[1] // patch, input_shape[2] // patch
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        grid = [
            sinusoids(rows, width // 2).repeat_interleave(columns, dim=0),
            sinusoids(columns, width // 2).repeat(rows, 1),
        ]
        self.register_buffer("places", torch.cat(grid, dim=1), persistent=False)
        self.stack = Stack(layers, width, heads, dropout, norm, positions=None, bias=True, checkpointing=checkpointing)
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, height, width) to logits (N, num_classes)."""
        patches = self.stem(x).flatten(2).transpose(1, 2)  # (N, patches, W)
        return self.head(self.stack(patches + self.places).mean(1))


class EncoderDecoder(nn.Module):
    """The paper's own Transformer (figure 1), one vocabulary for source and target.

    Args:
        vocabulary: number of tokens.
        padding: the token that fills up short sequences, and is never looked at.
        layers: of encoder and decoder, each; see `Stack`, as for the rest.
        width: channels W.
        heads: H.
        dropout: share.
        norm: "post" is the paper's.
        positions: "sinusoidal" is the paper's.
        checkpointing: see `Stack`.
    """

    def __init__(
        self,
        vocabulary: int,
        padding: int = 0,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "post",
        positions: Positions = "sinusoidal",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.embedding = Embedding(vocabulary, width)
        shape = (layers, width, heads, dropout, norm)
        self.encoder = Stack(*shape, positions=positions, bias=True, checkpointing=checkpointing)
        self.decoder = Stack(*shape, memory=True, positions=positions, bias=True, checkpointing=checkpointing)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (N, S) to what the encoder makes of it, (N, S, W), and where that may be looked at, (N, 1, 1, S)."""
        mask = (source != self.padding)[:, None, None]
        return self.encoder(self.embedding(source), mask=mask), mask

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """Tokens so far, int64 (N, T), to logits of those after each, (N, T, vocabulary)."""
        h = self.decoder(self.embedding(target), causal=True, memory=memory, memory_mask=mask, caches=caches)
        return self.embedding.logits(h)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source int64 (N, S), target so far int64 (N, T) to logits (N, T, vocabulary)."""
        return self.decode(target, *self.encode(source))


@contextmanager
def recording(module: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Attention maps of all that is computed inside: by the name of each `Attention`, (N, H, T, S) for each call.

    The maps are those of the formula written out, which the results inside are then computed by.
    """
    attentions = {name: m for name, m in module.named_modules() if isinstance(m, Attention)}
    maps: dict[str, list[Tensor]] = {name: [] for name in attentions}
    for name, attention in attentions.items():
        attention.recorded = maps[name]
    try:
        yield maps
    finally:
        for attention in attentions.values():
            cast(Attention, attention).recorded = None
