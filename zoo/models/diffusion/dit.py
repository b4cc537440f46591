"""The diffusion Transformer, DiT (Peebles and Xie 2023, arXiv 2212.09748). Plain torch.

A Transformer encoder over the patches of a noisy image. Each branch is y = x + gate F((1 + scale) norm(x) + shift);
gate, scale and shift come from noise level and class, and the gate is zero at the start, so that each block begins as
the identity (adaLN-Zero, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.diffusion.network import ConditionEmbedding, zeroed
from zoo.models.transformer.attention import MultiHeadAttention
from zoo.models.transformer.blocks import FeedForward
from zoo.models.transformer.positions import grid_sinusoids


class ModulatedNorm(nn.Module):
    """Layer normalization whose scale and shift are linear in a condition.

    Args:
        width: number of channels W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zeroed(nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (N, T, W), condition (N, W) to (N, T, W)."""
        scale, shift = self.modulate(condition).unsqueeze(1).chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class DiTBlock(nn.Module):
    """Self-attention and a feed-forward network, each y = x + gate F(modulated norm of x).

    Args:
        width: number of channels W.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = ModulatedNorm(width)
        self.attention = MultiHeadAttention(width, heads, bias=True)
        self.feed_forward_norm = ModulatedNorm(width)
        self.feed_forward = FeedForward(width, bias=True)
        self.gates = zeroed(nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (N, T, W), condition (N, W) to (N, T, W)."""
        first, second = self.gates(condition).unsqueeze(1).chunk(2, dim=-1)
        x = x + first * self.attention(self.attention_norm(x, condition))
        return x + second * self.feed_forward(self.feed_forward_norm(x, condition))


class DiT(nn.Module):
    """Diffusion Transformer for images.

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of classes, 0 for an unconditional network.
        patch_size: side of the patches in pixels, a divisor of H and W; halving it costs four times as much and more.
        layers: number of blocks.
        width: number of channels W, a multiple of 4 and of `heads`.
        heads: number of attention heads.

    Raises:
        ValueError: the options do not fit one another, or the shape.
    """

    #: Submodules that FSDP shards one by one.
    sharded = (DiTBlock,)
    positions: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        patch_size: int = 2,
        layers: int = 6,
        width: int = 128,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"a DiT needs images, not the shape {tuple(input_shape)}; use mlp")
        channels, height, columns = input_shape
        if patch_size < 1 or height % patch_size or columns % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide images of {height}x{columns} pixels")
        if layers < 1 or heads < 1 or width < 1 or width % 4 or width % heads:
            raise ValueError(f"width {width} must be a multiple of 4 and of the {heads} heads, layers {layers} above 0")
        self.patch_size = patch_size
        self.grid = (height // patch_size, columns // patch_size)
        self.condition = ConditionEmbedding(width, num_classes)
        self.stem = nn.Linear(channels * patch_size**2, width)
        self.register_buffer("positions", grid_sinusoids(*self.grid, width), persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(layers))
        self.final_norm = ModulatedNorm(width)
        self.head = zeroed(nn.Linear(width, channels * patch_size**2))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), c_noise (N,), labels (N,) or None to (N, C, H, W)."""
        condition = self.condition(c_noise, labels)
        patches = F.pixel_unshuffle(x, self.patch_size).flatten(2).mT  # (N, patches, C patch_size^2)
        h = self.stem(patches) + self.positions
        for block in self.blocks:
            h = block(h, condition)
        h = self.head(self.final_norm(h, condition))
        return F.pixel_shuffle(h.mT.unflatten(2, self.grid), self.patch_size)
