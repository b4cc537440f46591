"""What every model of the zoo has beyond a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class TrainingWindow:
    """Means over the last `log_every_n_steps` batches, for a log that would cost more than a small step at each.

    Args:
        unit: what is counted, as in `train/images_per_second`.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.start()

    def start(self) -> None:
        """Forgets what there was; the clock begins now."""
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.clock = time.perf_counter()

    def add(self, module: LightningModule, count: int, **means: Tensor) -> None:
        """Adds a batch's means, and logs those of the window at its end, with learning rate and speed.

        Args:
            module: that is trained, by one optimizer.
            count: units in the batch, over which the means were taken.
            **means: by the names that they are logged under, without `train/`; `loss` is shown beside the progress bar.
        """
        for name, mean in means.items():
            total = mean.detach().float() * count
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.count += count
        trainer = module.trainer
        period: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not period or (trainer.fit_loop.total_batch_idx + 1) % period:
            return
        speed = self.count * trainer.world_size / (time.perf_counter() - self.clock)
        for name, total in self.sums.items():
            module.log(f"train/{name}", total / self.count, prog_bar=name == "loss")
        rate = cast(Any, module.optimizers()).param_groups[0]["lr"]
        module.log_dict({"train/lr": rate, f"train/{self.unit}_per_second": speed})
        self.start()


class ZooModule(LightningModule):
    """Base of the models: checkpoints say which model they hold, and the ranks draw random numbers of their own."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_train_start(self) -> None:
        # Lightning seeds all ranks alike, so that they start from the same parameters; from here on they must not
        # draw the same noise, dropout masks and augmentations. The first rank draws what a single process does.
        if self.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; outside, every submodule is in the mode that it was in before."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in training.items():
            m.training = mode
