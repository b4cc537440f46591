"""The Transformer block and stacks of it (Vaswani et al. 2017, arXiv 1706.03762). Every sub-layer is y = F(x, w) + x.

Plain torch. Shapes: N sequences of T positions, W channels, H heads; a memory has S positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.models.transformer.attention import KVCache, MultiHeadAttention
from zoo.models.transformer.positions import PosEncoding, encode_range, rotation, sinusoids

Norm = Literal["pre", "post"]
NORMS = ("pre", "post")


class TokenEmbedding(nn.Module):
    """Embeds tokens as vectors of unit variance, and maps vectors to logits by the same matrix (section 3.4)."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.weight = nn.Parameter(torch.randn(vocab_size, width) / self.scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (...) to (..., width)."""
        return F.embedding(tokens, self.weight) * self.scale

    def logits(self, x: Tensor) -> Tensor:
        """(..., width) to (..., vocab_size)."""
        return F.linear(x, self.weight)


class FeedForward(nn.Sequential):
    """Feed-forward network of each position (section 3.3), with a hidden layer of four times the width."""

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__(nn.Linear(width, 4 * width, bias=bias), nn.GELU(), nn.Linear(4 * width, width, bias=bias))


class Block(nn.Module):
    """Self-attention, cross-attention to a memory if there is one, and a feed-forward network.

    Each is y = x + F(x), with layer normalization before F ("pre", Xiong et al. 2020, arXiv 2002.04745) or after the
    sum ("post", the paper), and dropout on F's output (section 5.4).

    Args:
        width: number of channels W.
        heads: number of heads H.
        dropout: dropout probability of each sub-layer's output.
        norm: position of the normalization.
        memory: add cross-attention to a memory.
        bias: use biases in linear layers and norms.
        qk_norm: see `MultiHeadAttention`.
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
        self.attention = MultiHeadAttention(width, heads, bias, qk_norm)
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.cross_attention = MultiHeadAttention(width, heads, bias, qk_norm) if memory else None
        self.memory_norm = nn.LayerNorm(width, bias=bias) if memory else None
        self.feed_forward = FeedForward(width, bias)
        self.feed_forward_norm = nn.LayerNorm(width, bias=bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x (N, T, W), memory (N, S, W) to (N, T, W); see `MultiHeadAttention` for the arguments."""
        pre = self.norm == "pre"
        h = self.attention(self.attention_norm(x) if pre else x, None, mask, causal, rotation, cache)
        x = x + self.dropout(h)
        x = x if pre else self.attention_norm(x)
        if self.cross_attention is not None and self.memory_norm is not None:
            h = self.cross_attention(self.memory_norm(x) if pre else x, memory, memory_mask)
            x = x + self.dropout(h)
            x = x if pre else self.memory_norm(x)
        h = self.feed_forward(self.feed_forward_norm(x) if pre else x)
        x = x + self.dropout(h)
        return x if pre else self.feed_forward_norm(x)


class TransformerStack(nn.Module):
    """Transformer blocks in sequence, with positional encoding.

    Args:
        layers: number of blocks.
        width: number of channels W.
        heads: number of heads H.
        dropout: dropout probability of each sub-layer's output, and of the sum of embeddings and positions.
        norm: see `Block`.
        memory: see `Block`.
        pos_encoding: "rotary" for rotated queries and keys; "sinusoidal" for sinusoids added to the input; None if the
            input contains its positions.
        bias: see `Block`.
        qk_norm: see `MultiHeadAttention`.
        activation_checkpointing: recompute the activations of blocks in the backward pass, which takes a third more
            time and a fraction of the memory.
        block: factory of a block that is handed `(width, heads)`, instead of `Block` with the options above; its
            forward takes the arguments of `Block.forward`.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        dropout: float = 0.0,
        norm: Norm = "pre",
        memory: bool = False,
        pos_encoding: PosEncoding | None = "rotary",
        bias: bool = False,
        qk_norm: bool = False,
        activation_checkpointing: bool = False,
        block: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.width, self.pos_encoding, self.activation_checkpointing = width, pos_encoding, activation_checkpointing
        self.dropout = nn.Dropout(dropout)
        ours = partial(Block, dropout=dropout, norm=norm, memory=memory, bias=bias, qk_norm=qk_norm)
        self.blocks = nn.ModuleList((block or ours)(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width, bias=bias) if norm == "pre" else nn.Identity()
        self.head_width = width // heads
        if block is not None:  # which has its own initialization
            return
        self.apply(self._initialize)
        # So the sum of all branches has the same variance at every depth (Radford et al. 2019, section 2.3).
        branches = layers * (3 if memory else 2)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "feed_forward.2.weight")):
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1] * branches))

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
        caches: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """Embeddings x (N, T, W) to (N, T, W); with caches, x follows the positions that these hold."""
        start = len(caches[0]) if caches else 0
        factors = None
        if self.pos_encoding == "rotary":
            factors = encode_range(rotation, start, x.shape[1], self.head_width, x.device)
        elif self.pos_encoding == "sinusoidal":
            x = x + encode_range(sinusoids, start, x.shape[1], self.width, x.device).to(x.dtype)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            arguments = (x, mask, causal, factors, memory, memory_mask, caches[index] if caches else None)
            recompute = self.activation_checkpointing and self.training
            x = checkpoint(block, *arguments, use_reentrant=False) if recompute else block(*arguments)
        return self.final_norm(x)

    def caches(self) -> list[KVCache]:
        """Empty caches, one for each block."""
        return [KVCache() for _ in self.blocks]
