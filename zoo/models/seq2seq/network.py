"""The encoder-decoder Transformer of Vaswani et al. 2017 (arXiv 1706.03762), figure 1. Plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.models.transformer.attention import KVCache
from zoo.models.transformer.blocks import Norm, TokenEmbedding, TransformerStack
from zoo.models.transformer.positions import PosEncoding


class EncoderDecoder(nn.Module):
    """Encoder-decoder Transformer with one vocabulary for source and target.

    Args:
        vocab_size: number of tokens V.
        padding: padding token, which is never attended to.
        layers: number of blocks of the encoder, and of the decoder; see `TransformerStack`, as for the rest.
        width: number of channels W.
        heads: number of heads H.
        dropout: dropout probability.
        norm: position of the normalization, "post" in the paper.
        pos_encoding: positional encoding, "sinusoidal" in the paper.
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        vocab_size: int,
        padding: int = 0,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "post",
        pos_encoding: PosEncoding = "sinusoidal",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.embedding = TokenEmbedding(vocab_size, width)
        shape = (layers, width, heads, dropout, norm)
        options = {"pos_encoding": pos_encoding, "bias": True, "activation_checkpointing": activation_checkpointing}
        self.encoder = TransformerStack(*shape, **options)  # type: ignore[arg-type]
        self.decoder = TransformerStack(*shape, memory=True, **options)  # type: ignore[arg-type]

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Source int64 (N, S) to memory (N, S, W) and its mask (N, 1, 1, S)."""
        mask = (source != self.padding)[:, None, None]
        return self.encoder(self.embedding(source), mask=mask), mask

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """Target tokens int64 (N, T) and memory to logits of the next tokens, (N, T, V)."""
        h = self.decoder(self.embedding(target), causal=True, memory=memory, memory_mask=mask, caches=caches)
        return self.embedding.logits(h)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Source int64 (N, S) and target int64 (N, T) to logits of the next tokens, (N, T, V)."""
        return self.decode(target, *self.encode(source))
