"""Optimizers, learning-rate schedules, and the types of their factories."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.optim.defaults import (
    classifier_optimizer,
    diffusion_optimizer,
    gan_optimizer,
    language_model_optimizer,
    seq2seq_optimizer,
)
from zoo.optim.groups import parameter_groups
from zoo.optim.muon import Muon, orthogonalize
from zoo.optim.scalar_adam import ScalarAdam
from zoo.optim.schedule import WarmupDecay, build_optimizer, build_scheduler

# As in lightning.pytorch.cli, which cannot be imported without jsonargparse.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]

__all__ = [
    "LRSchedulerCallable",
    "Muon",
    "OptimizerCallable",
    "ScalarAdam",
    "WarmupDecay",
    "build_optimizer",
    "build_scheduler",
    "classifier_optimizer",
    "diffusion_optimizer",
    "gan_optimizer",
    "language_model_optimizer",
    "orthogonalize",
    "parameter_groups",
    "seq2seq_optimizer",
]
