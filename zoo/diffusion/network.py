"""Networks that look at a noisy sample and at how noisy it is: a U-Net for images, residual layers for points.

Plain torch. They know nothing of diffusion: `forward(x, c_noise, labels)` maps inputs of unit variance to outputs of
unit variance; the preconditioning of `zoo.diffusion.preconditioned` makes a denoiser of it. Each block is the lecture's
y = F(x, w) + x, starts as the identity, and is told noise level and label by a scale and a shift of its channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 16


class Condition(nn.Module):
    """An embedding of the noise level, plus that of the label where there are classes.

    One more label than there are classes stands for no label, which is what an unconditional answer is asked by.

    Args:
        width: length of the embedding.
        num_classes: number of labels, 0 for none.
    """

    frequencies: Tensor

    def __init__(self, width: int, num_classes: int = 0) -> None:
        super().__init__()
        # The noise level comes as ln(sigma) / 4, in about [-1.6, 1.1].
        self.register_buffer("frequencies", torch.logspace(-1, 1, FREQUENCIES) * math.pi, persistent=False)
        self.noise = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.num_classes = num_classes

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """c_noise (N,), labels (N,) or None to (N, width)."""
        angles = c_noise.unsqueeze(1) * self.frequencies
        h = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.label is not None:
            if labels is None:
                labels = torch.full(c_noise.shape, self.num_classes, device=c_noise.device)
            h = h + self.label(labels)
        return F.silu(h)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer, with all parameters at zero: what a residual branch ends in, so that it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Blocks(nn.ModuleList):
    """Blocks one after the other, all told the same condition."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition)
        return x


class ConvBlock(nn.Module):
    """x + F(x): norm, scale and shift by the condition, two 3x3 convolutions; a 1x1 one where the channels change."""

    def __init__(self, channels_in: int, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(max(1, channels_in // 16), channels_in)
        self.modulate = zeroed(nn.Linear(condition, 2 * channels_in))
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (N, channels_in, H, W), condition (N, C) to (N, channels, H, W)."""
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return self.shortcut(x) + self.conv2(F.silu(self.conv1(F.silu(h))))


class Attention(nn.Module):
    """x + self-attention of all positions, with heads of 32 channels or more (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(heads for heads in range(1, max(1, channels // 32) + 1) if channels % heads == 0)
        self.norm = nn.GroupNorm(max(1, channels // 16), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to the same."""
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, height * width).transpose(-1, -2)
        h = F.scaled_dot_product_attention(*qkv.unbind(1))  # (N, heads, H W, C / heads)
        return x + self.out(h.transpose(-1, -2).reshape(n, c, height, width))


class UNet(nn.Module):
    """Residual blocks on ever coarser grids and back, each level on the way back seeing that on the way there.

    With one width it is a residual convolutional network at a single resolution, enough for 8x8 pixels. Ronneberger
    et al. 2015 (arXiv 1505.04597), with the blocks of DDPM.

    Args:
        in_channels: of the images.
        widths: channels at each level; the grid is halved from one to the next.
        blocks: in each level, on either way.
        patch: squares of patch x patch pixels become channels, which makes all that follows cheaper by its square.
        attention: whether the coarsest level ends in self-attention.
        num_classes: number of labels, 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (64, 128),
        blocks: int = 2,
        patch: int = 1,
        attention: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        condition = 2 * widths[0]
        self.condition = Condition(condition, num_classes)
        self.patch = patch
        self.stem = nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for width, coarser in zip(widths, [*widths[1:], None], strict=True):
            self.down.append(Blocks(ConvBlock(width, width, condition) for _ in range(blocks)))
            if coarser is not None:
                self.shrink.append(nn.Conv2d(width, coarser, 2, stride=2))
        self.attention = Attention(widths[-1]) if attention else nn.Identity()
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for width, coarser in reversed(list(pairwise(widths))):
            self.grow.append(nn.ConvTranspose2d(coarser, width, 2, stride=2))
            first = ConvBlock(2 * width, width, condition)
            self.up.append(Blocks([first, *(ConvBlock(width, width, condition) for _ in range(blocks - 1))]))
        self.head = nn.Sequential(
            nn.GroupNorm(max(1, widths[0] // 16), widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(widths[0], in_channels * patch**2, 3, padding=1)),
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, in_channels, H, W), c_noise (N,), labels (N,) or None to (N, in_channels, H, W)."""
        condition = self.condition(c_noise, labels)
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        levels = []
        for index, level in enumerate(self.down):
            if index > 0:
                levels.append(h)
                h = self.shrink[index - 1](h)
            h = level(h, condition)
        h = self.attention(h)
        for grow, level in zip(self.grow, self.up, strict=True):
            h = level(torch.cat([grow(h), levels.pop()], dim=1), condition)
        return F.pixel_shuffle(self.head(h), self.patch)


class LinearBlock(nn.Module):
    """x + F(x): norm, scale and shift by the condition, two linear layers."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = zeroed(nn.Linear(condition, 2 * width))
        self.linear1 = nn.Linear(width, width)
        self.linear2 = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (N, width), condition (N, C) to (N, width)."""
        scale, shift = self.modulate(condition).chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.linear2(F.silu(self.linear1(F.silu(h))))


class ResidualMLP(nn.Module):
    """Residual fully connected blocks, for points or flattened images.

    Args:
        input_shape: of one sample.
        width: units of every layer.
        blocks: how many.
        num_classes: number of labels, 0 for none.
    """

    def __init__(self, input_shape: Sequence[int], width: int = 128, blocks: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        features = math.prod(input_shape)
        self.condition = Condition(width, num_classes)
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(features, width))
        self.blocks = Blocks(LinearBlock(width, width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, features)))
        self.unflatten = nn.Unflatten(1, tuple(input_shape))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, *input_shape), c_noise (N,), labels (N,) or None to (N, *input_shape)."""
        condition = self.condition(c_noise, labels)
        return self.unflatten(self.head(self.blocks(self.stem(x), condition)))
