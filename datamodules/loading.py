"""Training loaders that resume in the middle of an epoch, exactly where a checkpoint was written.

Lightning's checkpoints include the state of a DataLoader that has `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.errors import UserError


class ResumableSampler(DistributedSampler[int]):
    """Samples each epoch in a new random order, divided among the processes.

    In a single process the order is drawn from torch's global random generator, as by torch's RandomSampler. With
    several processes it depends on seed and epoch, as in torch's DistributedSampler; Lightning does not replace a
    subclass of that sampler.

    Args:
        dataset: dataset with a length.
        num_processes: number of processes.
        rank: rank of this process.
        drop_last: drop samples so that all processes have the same number; otherwise some samples are repeated.
    """

    def __init__(self, dataset: Dataset[Any], num_processes: int = 1, rank: int = 0, drop_last: bool = False) -> None:
        # The seed shared by all processes, which Lightning also passes to its own samplers.
        try:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        except ValueError as error:
            raise UserError(
                f"PL_GLOBAL_SEED is {os.environ['PL_GLOBAL_SEED']!r}, which is not a whole number: unset it"
            ) from error
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
    """DataLoader whose state is the position in the epoch; `sampler` must be a `ResumableSampler`.

    `num_workers` must be 0, because workers prefetch batches, ahead of the position.
    """

    sampler: ResumableSampler
    _position = 0
    _resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resumed, self._resumed = self._resumed, None
        return self._batches(resumed)

    def _batches(self, resumed: dict[str, Any] | None) -> Iterator[Any]:
        # A generator draws nothing until the first batch is requested, when random states have been restored.
        self._position = resumed["position"] if resumed else 0
        size = cast(int, self.batch_size)
        self.sampler.resumed = (resumed["order_seed"], self._position * size) if resumed else None
        # A DataLoader draws a random number at the start of an epoch; in a resumed epoch this has happened already.
        with torch.random.fork_rng(devices=[], enabled=resumed is not None):
            batches = super().__iter__()
        for batch in batches:
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Number of batches returned in this epoch, and the seed of the epoch's order."""
        # Lightning's overfit_batches replaces the sampler by one without an order_seed.
        return {"position": self._position, "order_seed": getattr(self.sampler, "order_seed", None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the position at which the next iteration starts.

        Raises:
            UserError: the state is damaged.
        """
        position, seed = state.get("position"), state.get("order_seed")
        if not (_is_below(2**31, position) and (seed is None or _is_below(2**63, seed))):
            raise UserError("the position in the training data, or the seed of its order, is damaged in the checkpoint")
        self._resumed = dict(state)


def _is_below(limit: int, number: Any) -> bool:
    return isinstance(number, int) and 0 <= number < limit


def should_pin(dataset: Dataset[Any]) -> bool:
    """Whether a loader puts batches into pinned memory: for a GPU, unless the dataset's batches lie there already."""
    return torch.cuda.is_available() and getattr(dataset, "device", torch.device("cpu")).type == "cpu"


def training_loader(
    dataset: Dataset[Any], batch_size: int, drop_last: bool, collate: Any, trainer: Trainer | None
) -> ResumableLoader:
    """Builds a `ResumableLoader`.

    Args:
        dataset: dataset that returns whole batches by `__getitems__`.
        batch_size: batch size per process.
        drop_last: drop the last batch if it is smaller than the others.
        collate: collate function.
        trainer: Trainer whose processes share the samples; None for a single process.
    """
    processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=ResumableSampler(dataset, processes, rank, drop_last),
        drop_last=drop_last,
        collate_fn=collate,
        pin_memory=should_pin(dataset),
    )
