"""A generator and a discriminator of residual blocks, for square images of 8, 16, 32, ... pixels. Plain torch.

A residual branch adds nothing at first, since its last convolution is zero, so that no normalization is needed (Zhang
et al. 2019, "Fixup initialization", arXiv 1901.09321).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

COARSEST = 4  # pixels on a side


class ResidualBlock(nn.Module):
    """Adds two convolutions to features (N, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(h, 0.2)), 0.2))


class Generator(nn.Module):
    """Latent vectors to images in [-1, 1]: a residual block at each resolution.

    Args:
        output_shape: shape of an image, (C, H, W).
        latent_dim: length of the latent vector z.
        num_classes: number of classes, 0 for an unconditional GAN.
        width: number of channels.
    """

    def __init__(self, output_shape: tuple[int, ...], latent_dim: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, doublings = output_shape[0], count_doublings(output_shape)
        self.labels = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.coarse = nn.Sequential(
            nn.Linear(latent_dim, width * COARSEST**2), nn.Unflatten(1, (width, COARSEST, COARSEST))
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(doublings + 1))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """z (N, latent_dim) and labels (N,) or None to images (N, C, H, W)."""
        h = self.coarse(z if self.labels is None else z + self.labels(labels))
        for block in self.blocks[:-1]:
            h = F.interpolate(block(h), scale_factor=2)
        return self.out(F.leaky_relu(self.blocks[-1](h), 0.2)).tanh()


class Discriminator(nn.Module):
    """Images to logits: a residual block at each resolution.

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of classes, 0 for an unconditional GAN.
        width: number of channels.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, halvings = input_shape[0], count_doublings(input_shape)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(halvings + 1))
        self.out = nn.Linear(width * COARSEST**2, num_classes or 1)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x (N, C, H, W) and labels (N,) or None to logits (N,)."""
        h = self.first(x)
        for block in self.blocks[:-1]:
            h = F.avg_pool2d(block(h), 2)
        logits = self.out(F.leaky_relu(self.blocks[-1](h), 0.2).flatten(1))  # (N, 1), or one for each class
        return logits.squeeze(1) if labels is None else logits.gather(1, labels[:, None]).squeeze(1)


def count_doublings(shape: tuple[int, ...]) -> int:
    """Number of times that the coarsest grid is doubled to the size of an image (C, H, W).

    Raises:
        ValueError: there is no such number; it is answered in one line.
    """
    doublings = round(math.log2(shape[-1] / COARSEST))
    if len(shape) != 3 or doublings < 0 or shape[1:] != (COARSEST * 2**doublings,) * 2:
        raise ValueError(f"images must be square, with sides of 4, 8, 16, ... pixels, not {tuple(shape)}")
    return doublings
