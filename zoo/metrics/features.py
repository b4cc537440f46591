"""The small classifiers in whose features images are compared, in the place that Inception has in the FID.

The Fréchet inception distance (Heusel et al., 2017, arXiv 1706.08500) compares images of any size through a network
trained on ImageNet: 299x299 pixels, 2048 features, 90 MB to download. For images of 8x8 to 32x32 pixels a classifier
trained on a set of that size sees more of them and costs a thousandth. Three are shipped with the package;
`benchmarks/train_extractors.py` made them. Distances in the features of different extractors, or of different
versions of one, do not compare: report the extractor's name and the hash of its weights with every distance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError

EXTRACTORS = ("digits", "fashion_mnist", "cifar10_jpeg")


class FeatureExtractor(nn.Module):
    """A convolutional classifier whose last layer before the logits is taken as the features of an image.

    Stages of 3x3 convolutions, each with batch norm and ReLU; between two stages a max-pool halves the image; the
    last maps, averaged over the positions, are the features. That is the layer that the FID takes of Inception: an
    average over positions is nearer to a normal distribution, which the Fréchet distance assumes, than a single
    rectified unit is, and with no linear layer behind it the features are not squeezed into the few directions that
    tell the classes apart. One scalar, `scale`, brings the mean variance of a feature over the training split to 1.

    Args:
        in_channels: C of the images.
        size: height and width that the network was made for, in pixels; other sizes are resized to it.
        stages: channels of the convolutions, one sequence for each resolution; the last number is `num_features`.
        num_classes: of the labels that the network was trained on.

    Attributes:
        num_features: length of the feature vector, d.
        name: of the shipped weights; empty for a network that `load_extractor` did not make.
        sha256: of the file of the shipped weights, in hexadecimal; empty likewise.
    """

    scale: Tensor

    def __init__(self, in_channels: int, size: int, stages: Sequence[Sequence[int]], num_classes: int = 10) -> None:
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "size": size,
            "stages": [list(stage) for stage in stages],
            "num_classes": num_classes,
        }
        self.in_channels = in_channels
        self.size = size
        self.num_features = stages[-1][-1]
        self.name = ""
        self.sha256 = ""
        widths = [in_channels, *chain.from_iterable(stages)]
        convolutions = iter(pairwise(widths))
        layers: list[nn.Module] = []
        for index, stage in enumerate(stages):
            if index > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in stage:
                width_in, width_out = next(convolutions)
                layers += [
                    nn.Conv2d(width_in, width_out, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(width_out),
                    nn.ReLU(),
                ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (N, C, H, W) -> (N, d)
        self.head = nn.Linear(self.num_features, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Features, float32 (N, num_features), of images `x`, float in [-1, 1] (N, C, H, W) of any height and width.

        Always computed in float32, also under autocast.

        Raises:
            ValueError: `x` has not the channels that the network was made for.
        """
        return self._pooled(x) * self.scale

    def logits(self, x: Tensor) -> Tensor:
        """Logits, float32 (N, num_classes), of images `x` as for `forward`."""
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self._pooled(x))

    def _pooled(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images of shape {tuple(x.shape)}; expected (N, {self.in_channels}, H, W)")
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if x.shape[2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
            return self.body(x)


def load_extractor(name: str) -> FeatureExtractor:
    """Reads a shipped extractor: on the CPU, in float32, in eval mode, without gradients.

    The network is built without drawing random numbers, so that a metric made in the middle of a run does not change
    the run's random stream.

    Args:
        name: `digits` (1x8x8), `fashion_mnist` (1x28x28) or `cifar10_jpeg` (3x32x32).

    Raises:
        UserError: there is no extractor of this name.
    """
    if name not in EXTRACTORS:
        raise UserError(f"there is no feature extractor {name!r}; choose one of {', '.join(EXTRACTORS)}")
    from safetensors.torch import load

    data = (files("zoo") / "weights" / f"{name}.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    with torch.device("meta"):
        extractor = FeatureExtractor(**json.loads(header["__metadata__"]["config"]))
    # The file holds the kernels in half precision.
    weights = {key: value.float() if value.is_floating_point() else value for key, value in load(data).items()}
    extractor.load_state_dict(weights, assign=True)
    extractor.name = name
    extractor.sha256 = hashlib.sha256(data).hexdigest()
    return extractor.eval().requires_grad_(False)


def extractor_for(input_shape: Sequence[int]) -> FeatureExtractor | None:
    """The shipped extractor for images of shape `input_shape` = (C, H, W).

    `digits` for (1, 8, 8), `fashion_mnist` for all other grey images and `cifar10_jpeg` for all colour images, whatever
    they show, as the FID takes an ImageNet classifier for everything. None where `input_shape` is no image of 1 or 3
    channels.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    if shape == (1, 8, 8):
        return load_extractor("digits")
    return load_extractor("fashion_mnist" if shape[0] == 1 else "cifar10_jpeg")
