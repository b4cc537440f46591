"""Distance, fidelity and diversity of generated samples, near copies, temperature scaling, and windowed means."""

from zoo.metrics.device import FixedPrecisionMetric, Mean
from zoo.metrics.distance import distance_for
from zoo.metrics.features import FeatureExtractor, extractor_for, load_extractor
from zoo.metrics.fidelity import FidelityDiversity, FidelityScores, fidelity_scores
from zoo.metrics.frechet import FrechetDistance, frechet_distance
from zoo.metrics.inception import InceptionFeatures
from zoo.metrics.near_copies import NearCopies, nearest_distances
from zoo.metrics.temperature import TemperatureFit, TemperatureScaling, fit_temperature
from zoo.metrics.two_sample import two_sample_accuracy
from zoo.metrics.wasserstein import SlicedWasserstein, wasserstein1
from zoo.metrics.windowed import Throughput, WindowedMetrics, log_is_due, log_values

__all__ = [
    "FeatureExtractor",
    "FidelityDiversity",
    "FidelityScores",
    "FixedPrecisionMetric",
    "FrechetDistance",
    "InceptionFeatures",
    "Mean",
    "NearCopies",
    "SlicedWasserstein",
    "TemperatureFit",
    "TemperatureScaling",
    "Throughput",
    "WindowedMetrics",
    "distance_for",
    "extractor_for",
    "fidelity_scores",
    "fit_temperature",
    "frechet_distance",
    "load_extractor",
    "log_is_due",
    "log_values",
    "nearest_distances",
    "two_sample_accuracy",
    "wasserstein1",
]
