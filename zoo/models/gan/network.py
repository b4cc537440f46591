"""Generators and discriminators: fully connected ones for points and tiny images, convolutional ones for the rest.

A generator is built from `(output_shape, latent_dim, num_classes)` and called with `(z, labels)`; a discriminator from
`(input_shape, num_classes)`, and called with `(x, labels)`. Without classes, `num_classes` is 0 and `labels` None.

Plain torch, without normalization layers: the gradient penalties make them unnecessary, samples stay independent of
their batch, and there are no statistics to synchronize between ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LabeledLatent(nn.Module):
    """Appends a learned embedding of the class to the latent vector; the identity without classes.

    Args:
        latent_dim: length of the latent vector z.
        num_classes: number of classes, 0 for an unconditional network.
    """

    def __init__(self, latent_dim: int, num_classes: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.out_features = latent_dim * (2 if num_classes else 1)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """z (N, latent_dim) and labels (N,) to (N, out_features)."""
        return z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)


class ProjectionHead(nn.Module):
    """Linear map from features to one logit, plus the inner product with the class's embedding if there are classes.

    Miyato and Koyama 2018, "cGANs with projection discriminator" (arXiv 1802.05637), eq. 3.
    """

    def __init__(self, num_features: int, num_classes: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        self.embedding = nn.Embedding(num_classes, num_features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=num_features**-0.5)

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        """h (N, num_features) and labels (N,) to logits (N,)."""
        logits = self.linear(h).squeeze(1)
        return logits if self.embedding is None else logits + (h * self.embedding(labels)).sum(1)


def mlp(in_features: int, width: int, depth: int, slope: float) -> nn.Sequential:
    """`depth` hidden layers of `width` units, each followed by LeakyReLU with this slope below zero."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(in_features, width), nn.LeakyReLU(slope)]
        in_features = width
    return nn.Sequential(*layers)


class MLPGenerator(nn.Module):
    """Fully connected generator.

    Args:
        output_shape: shape of a sample; images (C, H, W) are bounded by tanh, points (D,) are not.
        latent_dim: length of the latent vector z.
        num_classes: number of classes, 0 for an unconditional network.
        width: units per hidden layer.
        depth: number of hidden layers.

    Raises:
        ValueError: width or depth is below 1.
    """

    def __init__(
        self, output_shape: Sequence[int], latent_dim: int, num_classes: int = 0, width: int = 256, depth: int = 2
    ) -> None:
        super().__init__()
        _check_positive(width=width, depth=depth)
        self.latent = LabeledLatent(latent_dim, num_classes)
        # ReLU, as in DCGAN's generator (Radford et al. 2016, arXiv 1511.06434): the output is flat where units are off,
        # so that few samples fall between narrow modes.
        self.hidden = mlp(self.latent.out_features, width, depth, slope=0.0)
        self.out = nn.Linear(width, math.prod(output_shape))
        self.unflatten = nn.Unflatten(1, tuple(output_shape))
        self.bound = nn.Tanh() if len(output_shape) == 3 else nn.Identity()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (N, latent_dim), labels (N,) to (N, *output_shape)."""
        return self.bound(self.unflatten(self.out(self.hidden(self.latent(z, labels)))))


class MLPDiscriminator(nn.Module):
    """Fully connected discriminator.

    Args:
        input_shape: shape of a sample.
        num_classes: number of classes, 0 for an unconditional network.
        width: units per hidden layer.
        depth: number of hidden layers.

    Raises:
        ValueError: width or depth is below 1.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int = 0, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        _check_positive(width=width, depth=depth)
        self.hidden = mlp(math.prod(input_shape), width, depth, slope=0.2)
        self.head = ProjectionHead(width, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, *input_shape), labels (N,) to logits (N,)."""
        return self.head(self.hidden(x.flatten(1)), labels)


def halvings(input_shape: Sequence[int]) -> int:
    """Number of times that an image of shape (C, H, W) can be halved before a side is odd or at most 8 pixels."""
    height, width = input_shape[-2:]
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) > 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


def _halvings(input_shape: Sequence[int], width: int, depth: int | None) -> int:
    """Number of strided convolutions of a network for images: `depth`, or as many as the image allows."""
    _check_positive(width=width, depth=depth)
    most = halvings(input_shape) if len(input_shape) == 3 else 0
    if not most:
        raise ValueError(
            f"convolutions need images with even sides above 8 pixels, not the shape {tuple(input_shape)}; use mlp"
        )
    if depth is not None and depth > most:
        raise ValueError(f"depth {depth} halves {tuple(input_shape)} too often; at most {most} times")
    return depth or most


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _hidden_layer(in_features: int, **widths: int) -> tuple[nn.Sequential, int]:
    """A hidden layer with LeakyReLU and its width, given by name; with width 0 nothing and `in_features`."""
    ((name, width),) = widths.items()
    if width < 0:
        raise ValueError(f"{name} is {width}; it must be at least 0")
    return mlp(in_features, width, min(width, 1), slope=0.2), width or in_features


class ConvGenerator(nn.Module):
    """Convolutional generator: a linear map to the coarsest grid, then transposed convolutions that double it.

    Args:
        output_shape: shape (C, H, W) of an image; both sides are divisible by 2^depth.
        latent_dim: length of the latent vector z.
        num_classes: number of classes, 0 for an unconditional network.
        width: channels at half the full resolution, doubled at each coarser one.
        depth: number of transposed convolutions (default: as many as lead to 4 to 8 pixels).
        mapping_width: units of a hidden layer between the latent vector and the linear map; 0 for none, which makes the
            coarsest grid a linear function of z up to the LeakyReLU, and kinds of images harder to tell apart.

    Raises:
        ValueError: the shape is not that of an image that can be halved, or not as often; or mapping_width is negative.
    """

    def __init__(
        self,
        output_shape: Sequence[int],
        latent_dim: int,
        num_classes: int = 0,
        width: int = 32,
        depth: int | None = None,
        mapping_width: int = 0,
    ) -> None:
        super().__init__()
        depth = _halvings(output_shape, width, depth)
        channels, height, columns = output_shape
        scale = 2**depth
        self.latent = LabeledLatent(latent_dim, num_classes)
        self.mapping, features = _hidden_layer(self.latent.out_features, mapping_width=mapping_width)
        coarse = (width * scale // 2, height // scale, columns // scale)
        self.project = nn.Sequential(nn.Linear(features, math.prod(coarse)), nn.LeakyReLU(0.2), nn.Unflatten(1, coarse))
        layers: list[nn.Module] = []
        for level in range(depth - 1, 0, -1):
            layers += [nn.ConvTranspose2d(width * 2**level, width * 2 ** (level - 1), 4, 2, 1), nn.LeakyReLU(0.2)]
        self.upsample = nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (N, latent_dim), labels (N,) to (N, C, H, W) in [-1, 1]."""
        return self.upsample(self.project(self.mapping(self.latent(z, labels))))


class ConvDiscriminator(nn.Module):
    """Convolutional discriminator: strided convolutions that halve the grid and double the channels.

    Args:
        input_shape: shape (C, H, W) of an image.
        num_classes: number of classes, 0 for an unconditional network.
        width: channels after the first convolution.
        depth: number of convolutions (default: as many as lead to 4 to 8 pixels).
        head_width: units of a hidden layer between the coarsest grid and the logit; 0 for none, which makes the logit
            a linear function of the grid.

    Raises:
        ValueError: the shape is not that of an image that can be halved, or not as often; or head_width is negative.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        width: int = 32,
        depth: int | None = None,
        head_width: int = 0,
    ) -> None:
        super().__init__()
        depth = _halvings(input_shape, width, depth)
        channels, height, columns = input_shape
        layers: list[nn.Module] = []
        for level in range(depth):
            layers += [nn.Conv2d(channels, width * 2**level, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width * 2**level
        self.hidden = nn.Sequential(*layers, nn.Flatten())
        grid = channels * (height // 2**depth) * (columns // 2**depth)
        self.summary, features = _hidden_layer(grid, head_width=head_width)
        self.head = ProjectionHead(features, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), labels (N,) to logits (N,)."""
        return self.head(self.summary(self.hidden(x)), labels)


#: Units of the hidden layers that the automatic convolutional networks have without classes (docs/results/gan.md): no
#: class tells the generator what kind of image to draw, or the discriminator what to compare it with.
UNCONDITIONAL_WIDTH = 128


def default_generator(
    output_shape: Sequence[int], latent_dim: int, num_classes: int = 0
) -> MLPGenerator | ConvGenerator:
    """Convolutional generator for images that can be halved, with a mapping layer if there are no classes.

    For all other samples a fully connected one.
    """
    if not _has_convolutions(output_shape):
        return MLPGenerator(output_shape, latent_dim, num_classes)
    mapping_width = 0 if num_classes else UNCONDITIONAL_WIDTH
    return ConvGenerator(output_shape, latent_dim, num_classes, mapping_width=mapping_width)


def default_discriminator(input_shape: Sequence[int], num_classes: int = 0) -> MLPDiscriminator | ConvDiscriminator:
    """Convolutional discriminator for images that can be halved, with a hidden layer in its head without classes.

    For all other samples a fully connected one.
    """
    if not _has_convolutions(input_shape):
        return MLPDiscriminator(input_shape, num_classes)
    return ConvDiscriminator(input_shape, num_classes, head_width=0 if num_classes else UNCONDITIONAL_WIDTH)


def _has_convolutions(input_shape: Sequence[int]) -> bool:
    return len(input_shape) == 3 and halvings(input_shape) > 0


GENERATORS = {"auto": default_generator, "mlp": MLPGenerator, "conv": ConvGenerator}
DISCRIMINATORS = {"auto": default_discriminator, "mlp": MLPDiscriminator, "conv": ConvDiscriminator}
