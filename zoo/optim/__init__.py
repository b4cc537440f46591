"""Optimizers and learning-rate schedules, and the types of the arguments that make them."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.optim.groups import parameter_groups
from zoo.optim.scalar_adam import ScalarAdam
from zoo.optim.schedule import WarmupDecay, build_optimizer, build_scheduler

# The same as in lightning.pytorch.cli, which cannot be imported where jsonargparse is missing.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]

__all__ = [
    "LRSchedulerCallable",
    "OptimizerCallable",
    "ScalarAdam",
    "WarmupDecay",
    "build_optimizer",
    "build_scheduler",
    "parameter_groups",
]
