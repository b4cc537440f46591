"""How good samples are: distances between generated and real images or points, as torchmetrics metrics."""

from zoo.metrics.features import FeatureExtractor, extractor_for, load_extractor
from zoo.metrics.frechet import FrechetDistance, frechet_distance
from zoo.metrics.wasserstein import SlicedWasserstein, wasserstein1

__all__ = [
    "FeatureExtractor",
    "FrechetDistance",
    "SlicedWasserstein",
    "extractor_for",
    "frechet_distance",
    "load_extractor",
    "wasserstein1",
]
