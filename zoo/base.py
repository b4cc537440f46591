"""What every model of the zoo has beyond a LightningModule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn


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
