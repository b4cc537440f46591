"""Feature extractors of the Fréchet distance: small classifiers that replace the FID's Inception network.

The Fréchet inception distance (Heusel et al. 2017, arXiv 1706.08500) compares images through a network trained on
ImageNet: 299x299 pixels, 2048 features, a download of 90 MB. For images of 8x8 to 32x32 pixels, a classifier trained at
that resolution resolves more detail at a thousandth of the cost. The package ships three, trained by
`benchmarks/train_extractors.py`; the FID's own network is in `zoo.metrics.inception`. Distances are comparable only
within one version of one extractor: report its name and the hash of its weights with every distance.
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
from zoo.metrics.inception import InceptionFeatures

#: SHA-256 of the files of weights, by name; `benchmarks/train_extractors.py` prints those of new ones.
EXTRACTORS = {
    "digits": "26266788285ab5a4277b3769a7ebdad571d84d28c8134211b70033a62768ce0d",
    "fashion_mnist": "f16056fbc2651aa20ca6bfddb40ff4bd770e3fd9378a0d8b26105c029eb84794",
    "cifar10_jpeg": "0c9c2cba39f760e69567599b59a7c751c1cfa7bfdfc43220e011d875d9ca0edf",
}


class FeatureExtractor(nn.Module):
    """A convolutional classifier whose last layer before the logits gives the features of an image.

    Stages of 3x3 convolutions, each with batch norm and ReLU; between stages max-pooling halves the image; the last
    maps, averaged over positions, are the features. The FID uses the same layer of Inception: an average over positions
    is closer to the normal distribution that the Fréchet distance assumes than a single rectified unit, and without a
    linear layer after it, the features are not reduced to the few directions that separate the classes. The scalar
    `scale` sets the mean variance of a feature over the training split to 1.

    Args:
        in_channels: channels C of the images.
        size: height and width of the network's input, in pixels; images of other sizes are resized.
        stages: channels of the convolutions, one sequence for each resolution; the last number is `num_features`.
        num_classes: number of classes of the training data.

    Attributes:
        num_features: length d of the feature vector.
        name: name of the shipped weights; empty unless made by `load_extractor`.
        sha256: hash of the file of weights, in hexadecimal; empty unless made by `load_extractor`.
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

    @property
    def description(self) -> str:
        """What the features are, for a line of output."""
        return f"{self.num_features} features of the classifier {self.name}, weights {self.sha256[:8]}"

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) of any height and width, floats in [-1, 1], to features, float32 (N, num_features).

        Computed in float32, also under autocast.

        Raises:
            ValueError: `x` does not have the shape (N, in_channels, H, W).
        """
        return self._pooled(x) * self.scale

    def logits(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), as in `forward`, to logits, float32 (N, num_classes)."""
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


def load_extractor(name: str) -> FeatureExtractor | InceptionFeatures:
    """Loads a shipped extractor: on the CPU, in float32, in eval mode, without gradients; or that of the FID.

    No random numbers are drawn, so a metric created during a run does not change the run's random state.

    Args:
        name: name of the extractor: "digits" (1x8x8), "fashion_mnist" (1x28x28), "cifar10_jpeg" (3x32x32), or
            "inception" (gray or color images of any size), which reads its weights when it is first used.

    Raises:
        UserError: there is no extractor of this name, or its file is missing or damaged.
    """
    if name == InceptionFeatures.name:
        return InceptionFeatures()
    if name not in EXTRACTORS:
        known = ", ".join([*EXTRACTORS, InceptionFeatures.name])
        raise UserError(f"there is no feature extractor {name!r}; choose one of {known}")
    return _load_shipped(name)


def _load_shipped(name: str) -> FeatureExtractor:
    """One of `EXTRACTORS`."""
    from safetensors.torch import load

    data = _read_weights(name)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    with torch.device("meta"):
        extractor = FeatureExtractor(**json.loads(header["__metadata__"]["config"]))
    # The file stores the kernels in half precision.
    weights = {key: value.float() if value.is_floating_point() else value for key, value in load(data).items()}
    extractor.load_state_dict(weights, assign=True)
    extractor.name = name
    extractor.sha256 = EXTRACTORS[name]
    return extractor.eval().requires_grad_(False)


def _read_weights(name: str) -> bytes:
    """A shipped file of weights, checked by its hash: distances by other weights would be silently wrong."""
    file = files("zoo") / "weights" / f"{name}.safetensors"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; install lightning-zoo again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != EXTRACTORS[name]:
        raise UserError(
            f"{file} is damaged: its sha256 begins with {found[:8]}, not {EXTRACTORS[name][:8]}; install lightning-zoo "
            "again"
        )
    return data


def extractor_for(input_shape: Sequence[int]) -> FeatureExtractor | None:
    """Chooses the shipped extractor for images of a shape.

    The content of the images is not considered, just as the FID uses an ImageNet classifier for all images.

    Args:
        input_shape: shape of a sample, (C, H, W) for images.

    Returns:
        "digits" for (1, 8, 8), "fashion_mnist" for other grey images, "cifar10_jpeg" for color images; None if the
        shape is not that of an image with 1 or 3 channels.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    if shape == (1, 8, 8):
        return _load_shipped("digits")
    return _load_shipped("fashion_mnist" if shape[0] == 1 else "cifar10_jpeg")
