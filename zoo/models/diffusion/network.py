"""Networks conditioned on the noise level: a U-Net for images, a residual MLP for points.

Plain torch. A network is built from `(input_shape, num_classes)`, with 0 classes for an unconditional one. Its
`forward(x, c_noise, labels)` maps inputs of unit variance to outputs of unit variance;
`zoo.models.diffusion.denoiser.Denoiser` turns it into a denoiser. Each block is the lecture's y = F(x, w) + x, is
initialized to the identity, and receives noise level and class as a scale and a shift of its channels. A third network
is in `zoo.models.diffusion.dit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 16


class ConditionEmbedding(nn.Module):
    """Embedding of the noise level plus, if there are classes, that of the class.

    The additional label `num_classes` means no class.

    Args:
        width: length of the embedding.
        num_classes: number of classes, 0 for an unconditional network.
    """

    frequencies: Tensor

    def __init__(self, width: int, num_classes: int = 0) -> None:
        super().__init__()
        # c_noise is ln(sigma) / 4, in about [-1.6, 1.1].
        self.register_buffer("frequencies", torch.logspace(-1, 1, FREQUENCIES) * math.pi, persistent=False)
        self.noise = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.num_classes = num_classes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != frequencies.dtype:  # rounded ones would be angles that are wrong by up to 0.1
            self.frequencies = frequencies.to(self.frequencies.device)
        return self

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """c_noise (N,), labels (N,) or None to (N, width)."""
        angles = c_noise.unsqueeze(1) * self.frequencies
        h = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1).to(c_noise.dtype))
        if self.label is not None:
            if labels is None:
                labels = torch.full(c_noise.shape, self.num_classes, device=c_noise.device)
            h = h + self.label(labels)
        return F.silu(h)


def zeroed(layer: nn.Module) -> nn.Module:
    """Sets all parameters of a layer to zero, so that a residual block that ends in it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ConditionalSequential(nn.ModuleList):
    """Blocks in sequence, all with the same condition."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition)
        return x


class ConvBlock(nn.Module):
    """x + F(x): normalization, scale and shift, two 3x3 convolutions; a 1x1 shortcut if the channels change."""

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
    """x + self-attention over all positions, with at least 32 channels per head (Vaswani et al. 2017, eq. 1)."""

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
    """U-Net of residual blocks (Ronneberger et al. 2015, arXiv 1505.04597), with blocks as in DDPM.

    With one width it is a residual convolutional network at a single resolution, enough for 8x8 pixels.

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of classes, 0 for an unconditional network.
        widths: channels of each level, finest first; each further level halves the resolution. Multiples of 16, or less
            than 16.
        blocks: residual blocks per level, on the way down and up.
        patch_size: side of the squares of pixels that become channels (pixel-unshuffle), which reduces the cost by its
            square.
        attention: add self-attention at the coarsest level.

    Raises:
        ValueError: the shape is not that of an image that can be divided this way, or the widths cannot be normalized.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        widths: Sequence[int] = (64,),
        blocks: int = 3,
        patch_size: int = 1,
        attention: bool = False,
    ) -> None:
        super().__init__()
        _check_unet(input_shape, widths, blocks, patch_size)
        in_channels = input_shape[0]
        condition = 2 * widths[0]
        self.condition = ConditionEmbedding(condition, num_classes)
        self.patch_size = patch_size
        self.stem = nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for width, coarser in zip(widths, [*widths[1:], None], strict=True):
            self.down.append(ConditionalSequential(ConvBlock(width, width, condition) for _ in range(blocks)))
            if coarser is not None:
                self.shrink.append(nn.Conv2d(width, coarser, 2, stride=2))
        self.attention = Attention(widths[-1]) if attention else nn.Identity()
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for width, coarser in reversed(list(pairwise(widths))):
            self.grow.append(nn.ConvTranspose2d(coarser, width, 2, stride=2))
            first = ConvBlock(2 * width, width, condition)
            self.up.append(
                ConditionalSequential([first, *(ConvBlock(width, width, condition) for _ in range(blocks - 1))])
            )
        self.head = nn.Sequential(
            nn.GroupNorm(max(1, widths[0] // 16), widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(widths[0], in_channels * patch_size**2, 3, padding=1)),
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), c_noise (N,), labels (N,) or None to (N, C, H, W)."""
        condition = self.condition(c_noise, labels)
        h = self.stem(F.pixel_unshuffle(x, self.patch_size))
        levels = []
        for index, level in enumerate(self.down):
            if index > 0:
                levels.append(h)
                h = self.shrink[index - 1](h)
            h = level(h, condition)
        h = self.attention(h)
        for grow, level in zip(self.grow, self.up, strict=True):
            h = level(torch.cat([grow(h), levels.pop()], dim=1), condition)
        return F.pixel_shuffle(self.head(h), self.patch_size)


def _check_unet(input_shape: Sequence[int], widths: Sequence[int], blocks: int, patch_size: int) -> None:
    """Raises a ValueError for options of a U-Net that its images do not allow."""
    if len(input_shape) != 3:
        raise ValueError(f"a U-Net needs images, not the shape {tuple(input_shape)}; use mlp")
    if blocks < 1 or patch_size < 1:
        raise ValueError(f"blocks is {blocks} and patch_size {patch_size}; both must be at least 1")
    if not widths or min(widths) < 1 or any(width > 16 and width % 16 for width in widths):
        raise ValueError(f"widths are {list(widths)}; use multiples of 16, or less than 16")
    scale = patch_size * 2 ** (len(widths) - 1)
    if any(side % scale for side in input_shape[1:]):
        raise ValueError(
            f"patch_size {patch_size} and {len(widths)} widths divide the sides by {scale}, which images of "
            f"{input_shape[1]}x{input_shape[2]} pixels do not allow; use another patch_size, or fewer widths"
        )


class LinearBlock(nn.Module):
    """x + F(x): normalization, scale and shift, two linear layers."""

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
    """Residual fully connected network for points or flattened images.

    Args:
        input_shape: shape of a sample.
        num_classes: number of classes, 0 for an unconditional network.
        width: units of every layer.
        blocks: number of residual blocks.

    Raises:
        ValueError: width or blocks is below 1.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int = 0, width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        if width < 1 or blocks < 1:
            raise ValueError(f"width is {width} and blocks {blocks}; both must be at least 1")
        features = math.prod(input_shape)
        self.condition = ConditionEmbedding(width, num_classes)
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(features, width))
        self.blocks = ConditionalSequential(LinearBlock(width, width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, features)))
        self.unflatten = nn.Unflatten(1, tuple(input_shape))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, *input_shape), c_noise (N,), labels (N,) or None to (N, *input_shape)."""
        condition = self.condition(c_noise, labels)
        return self.unflatten(self.head(self.blocks(self.stem(x), condition)))
