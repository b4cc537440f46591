"""Diffusion models."""

from zoo.diffusion.consistency import ConsistencyModel
from zoo.diffusion.force import AnalyticForce, Force
from zoo.diffusion.module import Diffusion
from zoo.diffusion.process import Process
from zoo.diffusion.samplers import noise_levels, solve

__all__ = ["AnalyticForce", "ConsistencyModel", "Diffusion", "Force", "Process", "noise_levels", "solve"]
