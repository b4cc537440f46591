"""The Vision Transformer as a classifier: the Transformer's encoder on patches of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from zoo.classifier import Classifier
from zoo.errors import UserError, check_at_least, check_choice
from zoo.transformer.network import NORMS, Block, VisionTransformer


class ViTClassifier(Classifier):
    """A Transformer that reads an image as a sequence of patches (Dosovitskiy et al. 2021, arXiv 2010.11929).

    On small data sets a ResNet beats it: it has to learn from data what a convolution is built with.

    Args:
        input_shape: of one image, (C, H, W).
        num_classes: number of labels in the data.
        patch: side of the patches, in pixels; it divides the image's.
        layers: blocks of attention and feed-forward network.
        width: channels, a multiple of 4 and of `heads`.
        heads: of each attention.
        dropout: share of each sub-layer's outputs, and of the embeddings, that is dropped in training.
        norm: of each sub-layer: before it, or after the sum, as in the paper.
        checkpointing: compute activations anew on the way back, for a fraction of the memory.
        **kwargs: of `zoo.classifier.Classifier`.
    """

    sharded = (Block,)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch: int = 4,
        layers: int = 6,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Literal["pre", "post"] = "pre",
        checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(input_shape) != 3:
            raise UserError(f"ViTClassifier takes images (C, H, W), not samples of the shape {tuple(input_shape)}")
        check_at_least(1, patch=patch, layers=layers, heads=heads)
        check_choice("norm", norm, NORMS)
        if width < 1 or width % 4 or width % heads:
            raise UserError(f"width is {width}; it must be a multiple of 4 and of the {heads} heads")
        if input_shape[1] % patch or input_shape[2] % patch:
            raise UserError(f"patch {patch} does not divide images of {input_shape[1]}x{input_shape[2]} pixels")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is {dropout}; it must be at least 0 and below 1")
        network = VisionTransformer(input_shape, num_classes, patch, layers, width, heads, dropout, norm, checkpointing)
        super().__init__(network, input_shape, num_classes, **kwargs)
