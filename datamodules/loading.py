"""Training batches that resume in the middle of an epoch, exactly where a checkpoint was written.

Lightning keeps the state of a DataLoader that has one (`state_dict`, `load_state_dict`) in its checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class ResumableSampler(DistributedSampler[int]):
    """Every epoch in another random order, of which each process takes its share.

    A single process draws the order from torch's global random numbers, as torch's RandomSampler does; several share
    one that depends on seed and epoch, as torch's DistributedSampler does, which Lightning therefore leaves as it is.

    Args:
        dataset: that is sampled from, with a length.
        num_processes: that share each epoch.
        rank: of this process.
        drop_last: leave samples out where the processes would not have as many; else some are repeated.
    """

    def __init__(self, dataset: Dataset[Any], num_processes: int = 1, rank: int = 0, drop_last: bool = False) -> None:
        # The seed that all processes were given, as Lightning hands it to the samplers that it makes itself.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        super().__init__(dataset, num_processes, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.order_seed: int | None = None
        self.resumed: tuple[int | None, int] | None = None

    def __iter__(self) -> Iterator[int]:
        self.order_seed, start = self.resumed or (None, 0)
        if self.num_replicas > 1:
            return islice(super().__iter__(), start, None)
        if self.order_seed is None:
            self.order_seed = int(torch.empty((), dtype=torch.int64).random_().item())
        generator = torch.Generator().manual_seed(self.order_seed)
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        return islice(iter(order.tolist()), start, None)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader of shuffled batches whose state is its place in the epoch; `sampler` must be a `ResumableSampler`.

    Batches must be made in the training process (`num_workers` 0): workers would be ahead of the place.
    """

    sampler: ResumableSampler
    _position = 0
    _resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resumed, self._resumed = self._resumed, None
        return self._batches(resumed)

    def _batches(self, resumed: dict[str, Any] | None) -> Iterator[Any]:
        # Nothing is drawn before the first batch is asked for, when random states have been restored.
        self._position = resumed["position"] if resumed else 0
        size = cast(int, self.batch_size)
        self.sampler.resumed = (resumed["order_seed"], self._position * size) if resumed else None
        # A DataLoader draws a number when it begins; one that goes on has drawn it before.
        with torch.random.fork_rng(devices=[], enabled=resumed is not None):
            batches = super().__iter__()
        for batch in batches:
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The batches of this epoch that were handed out, and what the order of this epoch was drawn by."""
        # Lightning's overfit_batches puts a sampler of its own in the place of ours.
        return {"position": self._position, "order_seed": getattr(self.sampler, "order_seed", None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on at that place when it is next iterated over."""
        self._resumed = dict(state)


def training_loader(
    dataset: Dataset[Any], batch_size: int, drop_last: bool, collate: Any, trainer: Trainer | None
) -> ResumableLoader:
    """A `ResumableLoader`, cut over the processes of this Trainer, or for a single one."""
    processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=ResumableSampler(dataset, processes, rank, drop_last),
        drop_last=drop_last,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
