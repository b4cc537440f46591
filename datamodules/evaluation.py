"""Evaluation over several processes: every sample once, and as many batches on every process.

Torch's DistributedSampler repeats samples until all processes have as many, so a metric is that of other data than in
one process; and where it would not, one process could have a batch more than the others and wait for them forever, in
the first communication of that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.errors import UserError


class EvaluationSampler(DistributedSampler[int]):
    """Every sample once, in order: process r of W takes the samples r, r + W, r + 2W, ...

    Lightning leaves it as it is, since it is a DistributedSampler.

    Args:
        dataset: that is sampled from, with a length.
        num_processes: that share the samples, W.
        rank: of this process, r.

    Raises:
        UserError: there are fewer samples than processes, so that some would have none.
    """

    def __init__(self, dataset: Dataset[Any], num_processes: int, rank: int) -> None:
        super().__init__(dataset, num_processes, rank, shuffle=False)
        self.total_size = len(dataset)  # type: ignore[arg-type]
        if self.total_size < num_processes:
            raise UserError(
                f"there are {self.total_size} samples to evaluate on for {num_processes} processes; use no more "
                "--trainer.devices than samples"
            )
        self.num_samples = len(range(rank, self.total_size, num_processes))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


def even_batch_size(batch_size: int, num_samples: int, num_processes: int) -> int:
    """The smallest size from `batch_size` on by which all processes cut their samples into as many batches.

    Some processes have a sample more than others; by a size that divides what the others have they would need a batch
    of its own for it.
    """
    fewest, more = divmod(num_samples, num_processes)
    return next(size for size in count(batch_size) if not more or fewest % size)


def evaluation_loader(
    dataset: Dataset[Any], batch_size: int, collate: Callable[[Any], Any], trainer: Trainer | None
) -> DataLoader[Any]:
    """A DataLoader of every sample once, in order, of which each of the Trainer's processes takes its share.

    Args:
        dataset: hands out whole batches by `__getitems__`.
        batch_size: on each process; one or a few larger where the processes would not have as many batches.
        collate: makes a batch of what the dataset hands out.
        trainer: that evaluates; None for all samples.
    """
    sampler = None
    shares = trainer.distributed_sampler_kwargs if trainer is not None else None
    if shares and shares["num_replicas"] > 1:
        sampler = EvaluationSampler(dataset, shares["num_replicas"], shares["rank"])
        batch_size = even_batch_size(batch_size, sampler.total_size, sampler.num_replicas)
    return DataLoader(
        dataset,
        # By their names, since Lightning makes the DataLoader anew for predictions, by the names of what it was given.
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # A DataLoader draws a number whenever it is iterated over: from a generator of its own, so that training goes
        # on with the same random numbers with and without validation.
        generator=torch.Generator(),
    )
