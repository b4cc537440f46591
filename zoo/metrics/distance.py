"""The distance between samples and data that suits their shape."""

from __future__ import annotations

from collections.abc import Sequence

from torchmetrics import Metric

from zoo.metrics.features import extractor_for, load_extractor
from zoo.metrics.frechet import FrechetDistance
from zoo.metrics.wasserstein import SlicedWasserstein


def distance_for(input_shape: Sequence[int], extractor: str = "auto") -> tuple[str, Metric] | None:
    """Chooses the distance between generated samples and data: Fréchet for images, sliced Wasserstein for points.

    Args:
        input_shape: shape of a sample, (C, H, W) for images, (D,) for points.
        extractor: name of the feature extractor for images, see `zoo.metrics.load_extractor`; "auto" for the shipped
            one that suits the shape, "inception" for the FID, "none" for no distance.

    Returns:
        Name of the metric ("fd" or "w1") and the metric, or None.
    """
    if extractor == "none":
        return None
    if len(input_shape) == 1:
        return "w1", SlicedWasserstein(input_shape[0])
    network = extractor_for(input_shape) if extractor == "auto" else load_extractor(extractor)
    return None if network is None else ("fd", FrechetDistance(network))
