"""Learning-rate schedules that take the length of the run from the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from zoo._lightning import estimated_steps
from zoo.errors import UserError
from zoo.optim.groups import parameter_groups, scale_rates


class WarmupDecay(LambdaLR):
    """Linear warm-up, then linear or cosine decay over the rest of the run, updated at every step.

    Args:
        optimizer: optimizer whose learning rates are scheduled.
        warmup_steps: number of steps over which the learning rate rises linearly from near zero; a value below 1 is a
            fraction of the run. With 0.3 and `final` 0 this is the triangular one-cycle policy (Smith and Topin 2017,
            arXiv 1708.07120).
        final: final learning rate as a fraction of the peak.
        shape: shape of the decay.
        total_steps: length of the run in steps; by default the zoo's models set it from the Trainer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 0,
        final: float = 0.1,
        shape: Literal["linear", "cosine"] = "linear",
        total_steps: int | None = None,
    ) -> None:
        self.warmup_steps = warmup_steps
        self.final = final
        self.shape = shape
        self.total_steps = total_steps
        super().__init__(optimizer, self.factor)

    def run_for(self, total_steps: int) -> None:
        """Sets the length of the run, and updates the learning rate: the warm-up may depend on it."""
        self.total_steps = total_steps
        self._last_lr = [base * self.factor(self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def factor(self, step: int) -> float:
        """Learning rate at `step`, as a fraction of the optimizer's own."""
        share = 0 < self.warmup_steps < 1
        warmup = self.warmup_steps * (self.total_steps or 0) if share else self.warmup_steps
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if self.total_steps is None:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1 + (self.final - 1) * progress


def build_scheduler(
    factory: Callable[[Optimizer], LRScheduler] | None, optimizer: Optimizer, total_steps: int | float
) -> LRScheduler | None:
    """Builds a scheduler and sets the length of the run if it needs one.

    Args:
        factory: factory of the scheduler; None for a constant learning rate.
        optimizer: optimizer whose learning rate is scheduled.
        total_steps: length of the run in steps of the scheduler; infinity if unknown.

    Raises:
        UserError: the schedule needs the length of the run, which is unknown.
    """
    if factory is None:
        return None
    scheduler = factory(optimizer)
    if isinstance(scheduler, WarmupDecay) and scheduler.total_steps is None:
        if math.isinf(total_steps):
            raise UserError(
                "the learning-rate schedule WarmupDecay needs the length of the run: set trainer.max_steps, "
                "trainer.max_epochs, or its own total_steps"
            )
        scheduler.run_for(int(total_steps))
    return scheduler


def build_optimizer(
    optimizer: Callable[[Any], Optimizer],
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None,
    network: nn.Module,
    trainer: Any,
    layer_decay: float = 1.0,
) -> Any:
    """Builds what `configure_optimizers` returns for one optimizer of one network.

    Args:
        optimizer: factory of the optimizer; weight decay is applied to matrices and kernels only.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
        network: network to train.
        trainer: Trainer, which knows the length of the run.
        layer_decay: ratio of the learning rates of neighboring layers; see `parameter_groups`.
    """
    built = optimizer(parameter_groups(network, layer_decay))
    scale_rates(built.param_groups)
    scheduler = build_scheduler(lr_scheduler, built, estimated_steps(trainer))
    if scheduler is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
