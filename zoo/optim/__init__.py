"""Optimizers and learning-rate schedules, and the types of the arguments that make them."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.optim.schedule import WarmupDecay, build_scheduler

# The same as in lightning.pytorch.cli, which cannot be imported where jsonargparse is missing.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]

__all__ = ["LRSchedulerCallable", "OptimizerCallable", "WarmupDecay", "build_scheduler"]
