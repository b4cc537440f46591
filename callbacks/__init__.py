"""The callbacks. In the repository this folder stands at the top; installed, it is `zoo.callbacks`."""

from zoo.callbacks.attention_maps import AttentionMaps
from zoo.callbacks.checkpoints import BestAndLast
from zoo.callbacks.curves import CurvePlotter
from zoo.callbacks.equilibrium import EquilibriumReport
from zoo.callbacks.gradient_flow import GradientFlow
from zoo.callbacks.modes import ModeCoverage
from zoo.callbacks.non_finite import StopOnNonFinite
from zoo.callbacks.out_of_distribution import OutOfDistribution
from zoo.callbacks.predictions import PredictionWriter
from zoo.callbacks.progress import ShortProgressBar
from zoo.callbacks.samples import SampleLogger
from zoo.callbacks.signals import StopOnSignal

__all__ = [
    "AttentionMaps",
    "BestAndLast",
    "CurvePlotter",
    "EquilibriumReport",
    "GradientFlow",
    "ModeCoverage",
    "OutOfDistribution",
    "PredictionWriter",
    "SampleLogger",
    "ShortProgressBar",
    "StopOnNonFinite",
    "StopOnSignal",
]
