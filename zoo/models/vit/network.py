"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929). Plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.models.transformer.blocks import Norm, TransformerStack
from zoo.models.transformer.positions import sinusoids


class VisionTransformer(nn.Module):
    """Transformer encoder over the patches of an image; their mean is mapped to logits.

    Positions are sinusoids of row and column, and there is no class token (Beyer et al. 2022, arXiv 2205.01580).

    Args:
        input_shape: shape of an image, (C, height, width), with sides that are multiples of `patch_size`.
        num_classes: number of logits.
        patch_size: side of the patches, in pixels.
        layers: number of blocks; see `TransformerStack`, as for the rest.
        width: number of channels W, a multiple of 4.
        heads: number of heads H.
        dropout: dropout probability.
        norm: position of the normalization.
        activation_checkpointing: recompute activations in the backward pass.
    """

    positions: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch_size: int = 4,
        layers: int = 6,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "pre",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape[0], input_shape[1] // patch_size, input_shape[2] // patch_size
        self.stem = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        grid = [
            sinusoids(rows, width // 2).repeat_interleave(columns, dim=0),
            sinusoids(columns, width // 2).repeat(rows, 1),
        ]
        self.register_buffer("positions", torch.cat(grid, dim=1), persistent=False)
        self.stack = TransformerStack(
            layers,
            width,
            heads,
            dropout,
            norm,
            pos_encoding=None,
            bias=True,
            activation_checkpointing=activation_checkpointing,
        )
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, height, width) to logits (N, num_classes)."""
        patches = self.stem(x).flatten(2).transpose(1, 2)  # (N, patches, W)
        return self.head(self.stack(patches + self.positions).mean(1))
