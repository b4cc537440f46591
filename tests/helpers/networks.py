"""Factories of tiny networks, for models that tests build."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.models import MLPDiscriminator, MLPGenerator, ResidualMLP, UNet


def unet(width: int, blocks: int = 1) -> partial[UNet]:
    """U-Net of one level."""
    return partial(UNet, widths=(width,), blocks=blocks)


def residual_mlp(width: int, blocks: int = 1) -> partial[ResidualMLP]:
    """Residual MLP for points."""
    return partial(ResidualMLP, width=width, blocks=blocks)


def mlps(width: int, depth: int = 2) -> dict[str, Any]:
    """Arguments `generator` and `discriminator` of a GAN: MLPs of one size."""
    return {
        "generator": partial(MLPGenerator, width=width, depth=depth),
        "discriminator": partial(MLPDiscriminator, width=width, depth=depth),
    }
