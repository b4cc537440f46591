"""The Vision Transformer as a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from zoo.models.classifier import Classifier
from zoo.models.vit.network import SimpleViT


class ViTClassifier(Classifier):
    """Vision Transformer: classifies an image as a sequence of patches (Dosovitskiy et al. 2021, arXiv 2010.11929).

    On small data sets a ResNet is more accurate, since a convolution has locality built in.

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of classes.
        patch_size: side of the patches in pixels, a divisor of the image's sides.
        layers: number of blocks.
        width: number of channels, a multiple of 4 and of `heads`.
        heads: number of attention heads.
        dropout: dropout probability of each sub-layer's output, and of the embeddings.
        norm: position of layer normalization, before each sub-layer ("pre") or after the sum ("post", as in the paper).
        activation_checkpointing: recompute activations in the backward pass, which saves memory and takes more time.
        **kwargs: arguments of `zoo.models.classifier.Classifier`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch_size: int = 4,
        layers: int = 6,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Literal["pre", "post"] = "pre",
        activation_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        network = partial(
            SimpleViT,
            patch_size=patch_size,
            layers=layers,
            width=width,
            heads=heads,
            dropout=dropout,
            norm=norm,
            activation_checkpointing=activation_checkpointing,
        )
        super().__init__(input_shape, num_classes, network, **kwargs)
