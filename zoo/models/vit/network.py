"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929). Plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.models.transformer.blocks import NORMS, Block, Norm, TransformerStack
from zoo.models.transformer.positions import grid_sinusoids


class SimpleViT(nn.Module):
    """Transformer encoder over the patches of an image; their mean is mapped to logits.

    Positions are sinusoids of row and column, and there is no class token (Beyer et al. 2022, arXiv 2205.01580).

    Args:
        input_shape: shape of an image, (C, height, width), with sides that are multiples of `patch_size`.
        num_classes: number of logits.
        patch_size: side of the patches, in pixels.
        layers: number of blocks; see `TransformerStack`, as for the rest.
        width: number of channels W, a multiple of 4 and of `heads`.
        heads: number of heads H.
        dropout: dropout probability.
        norm: position of the normalization.
        activation_checkpointing: recompute activations in the backward pass.

    Raises:
        ValueError: the options do not fit one another, or the shape.
    """

    #: Submodules that FSDP shards one by one.
    sharded = (Block,)
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
        _check(input_shape, patch_size, layers, width, heads, dropout, norm)
        channels, rows, columns = input_shape[0], input_shape[1] // patch_size, input_shape[2] // patch_size
        self.stem = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.register_buffer("positions", grid_sinusoids(rows, columns, width), persistent=False)
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


def _check(
    input_shape: Sequence[int], patch_size: int, layers: int, width: int, heads: int, dropout: float, norm: str
) -> None:
    """Raises a ValueError for options that do not fit one another or the shape."""
    if len(input_shape) != 3:
        raise ValueError(f"it takes images (C, H, W), not samples of the shape {tuple(input_shape)}")
    for name, value in {"patch_size": patch_size, "layers": layers, "heads": heads}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    if width < 1 or width % 4 or width % heads:
        raise ValueError(f"width is {width}; it must be a multiple of 4 and of the {heads} heads")
    if input_shape[1] % patch_size or input_shape[2] % patch_size:
        raise ValueError(f"patch_size {patch_size} does not divide images of {input_shape[1]}x{input_shape[2]} pixels")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
