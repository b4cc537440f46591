"""The callbacks. In the repository this folder stands at the top; installed, it is `zoo.callbacks`."""

from zoo.callbacks.curves import CurvePlotter
from zoo.callbacks.equilibrium import EquilibriumReport
from zoo.callbacks.modes import ModeCoverage
from zoo.callbacks.progress import ShortProgressBar
from zoo.callbacks.samples import SampleLogger

__all__ = ["CurvePlotter", "EquilibriumReport", "ModeCoverage", "SampleLogger", "ShortProgressBar"]
