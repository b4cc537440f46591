"""Optimizers and learning-rate schedules."""

from zoo.optim.schedule import WarmupDecay, build_scheduler

__all__ = ["WarmupDecay", "build_scheduler"]
