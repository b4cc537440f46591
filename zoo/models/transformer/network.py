"""A decoder-only Transformer as a language model. Plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from zoo.models.transformer.attention import KVCache
from zoo.models.transformer.blocks import Block, Norm, TokenEmbedding, TransformerStack
from zoo.models.transformer.positions import PosEncoding


class LanguageModel(nn.Module):
    """Causal Transformer: logits of the next token at each position.

    Args:
        vocab_size: number of tokens V.
        layers: number of blocks; see `TransformerStack`, as for the rest.
        width: number of channels W.
        heads: number of heads H.
        dropout: dropout probability.
        norm: position of the normalization.
        pos_encoding: positional encoding.
        qk_norm: normalize queries and keys.
        activation_checkpointing: recompute activations in the backward pass.
        block: factory of a block, instead of ours.
    """

    #: Submodules that FSDP shards one by one.
    sharded = (Block,)

    def __init__(
        self,
        vocab_size: int,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "pre",
        pos_encoding: PosEncoding = "rotary",
        qk_norm: bool = False,
        activation_checkpointing: bool = False,
        block: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.stack = TransformerStack(
            layers, width, heads, dropout, norm, False, pos_encoding, False, qk_norm, activation_checkpointing, block
        )
        self.embedding = TokenEmbedding(vocab_size, width)

    def forward(self, tokens: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """Tokens int64 (N, T) to logits (N, T, V); with caches, tokens follow those that these hold."""
        return self.embedding.logits(self.stack(self.embedding(tokens), causal=True, caches=caches))
