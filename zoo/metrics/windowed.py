"""Means over a window of batches, and throughput, logged together: one `log` call costs more than a small step."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


def log_is_due(module: LightningModule) -> bool:
    """Whether the current batch is the last one in a window of `log_every_n_steps`; never if that is 0."""
    period: int = module.trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(period) and (module.trainer.fit_loop.total_batch_idx + 1) % period == 0


def log_values(module: LightningModule, values: Mapping[str, Tensor | float], shown: Collection[str] = ()) -> None:
    """Logs scalars of a training step from the CPU, to which one copy brings all of them.

    Lightning reads a logged value of the progress bar again in every batch, whether there is a bar or not. On a GPU
    each of these would wait for the step.

    Args:
        module: module in training.
        values: scalars by name.
        shown: names of those beside the progress bar.
    """
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    whole = [cast(Any, t).full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]  # sharded ones too
    copied = iter(torch.stack([t.detach().float() for t in whole]).cpu() if whole else ())
    scalars = {
        name: next(copied) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
        for name, value in values.items()
    }
    module.log_dict({name: value for name, value in scalars.items() if name in shown}, prog_bar=True)
    module.log_dict({name: value for name, value in scalars.items() if name not in shown})


class Throughput:
    """Counts units, such as images, and divides them by the time since the last reading."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Sets the count to zero and starts the clock."""
        self.count = 0
        self.clock = time.perf_counter()

    def update(self, count: int) -> None:
        """Adds units that this process has seen."""
        self.count += count

    def per_second(self, world_size: int) -> float:
        """Units per second of all processes since `start`; starts again."""
        speed = self.count * world_size / (time.perf_counter() - self.clock)
        self.start()
        return speed


class WindowedMetrics:
    """Means over the last `log_every_n_steps` batches.

    Args:
        unit: unit that is counted, as in `train/images_per_second`.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.throughput = Throughput()
        self.start()

    def start(self) -> None:
        """Empties the window."""
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.throughput.start()

    def update(self, count: int, **means: Tensor) -> None:
        """Adds a batch.

        Args:
            count: units in the batch.
            **means: means over these units, by name without the prefix `train/`.
        """
        for name, mean in means.items():
            total = mean.detach().float() * count
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.count += count
        self.throughput.update(count)

    def log(self, module: LightningModule) -> None:
        """At the end of a window, logs its means, the learning rate and the throughput, and empties it.

        Args:
            module: module in training, with one optimizer. Its `loss` is shown beside the progress bar.
        """
        if not log_is_due(module):
            return
        speed = self.throughput.per_second(module.trainer.world_size)
        means = {f"train/{name}": total / self.count for name, total in self.sums.items()}
        rate = cast(Any, module.optimizers()).param_groups[0]["lr"]
        log_values(module, means | {"train/lr": rate, f"train/{self.unit}_per_second": speed}, ["train/loss"])
        self.start()

    def state_dict(self) -> dict[str, Any]:
        """Contents of the unfinished window."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores an unfinished window; throughput is counted from now on."""
        self.start()
        self.sums, self.count = dict(state["sums"]), state["count"]
