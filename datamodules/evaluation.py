"""Loaders for distributed evaluation: every sample once, with the same number of batches on every process.

torch's DistributedSampler repeats samples until all processes have the same number, which changes the metrics. Without
repetition, a process with one batch more than the others would wait forever in that batch's first collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.datamodules.loading import should_pin
from zoo.errors import UserError


class EvaluationSampler(DistributedSampler[int]):
    """Samples every index once, in order: process r of W gets r, r + W, r + 2W, ...

    Lightning does not replace it, because it is a DistributedSampler.

    Args:
        dataset: dataset with a length.
        num_processes: number of processes W.
        rank: rank r of this process.

    Raises:
        UserError: there are fewer samples than processes.
    """

    def __init__(self, dataset: Dataset[Any], num_processes: int, rank: int) -> None:
        super().__init__(dataset, num_processes, rank, shuffle=False)
        self.total_size = len(dataset)  # type: ignore[arg-type]
        if self.total_size < num_processes:
            raise UserError(
                f"there are fewer samples to evaluate ({self.total_size}) than processes ({num_processes}); use fewer "
                "--trainer.devices"
            )
        self.num_samples = len(range(rank, self.total_size, num_processes))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


def even_batch_size(batch_size: int, num_samples: int, num_processes: int) -> int:
    """Smallest size of at least `batch_size` by which all processes have the same number of batches.

    Some processes can have one sample more than the others. If the batch size divides the number of the others, that
    sample would need an additional batch.

    Args:
        batch_size: requested batch size per process.
        num_samples: number of samples over all processes.
        num_processes: number of processes.
    """
    fewest, more = divmod(num_samples, num_processes)
    return next(size for size in count(batch_size) if not more or fewest % size)


def evaluation_loader(
    dataset: Dataset[Any], batch_size: int, collate: Callable[[Any], Any], trainer: Trainer | None
) -> DataLoader[Any]:
    """Builds a DataLoader over every sample once, in order, divided among the Trainer's processes.

    Args:
        dataset: dataset that returns whole batches by `__getitems__`.
        batch_size: batch size per process; slightly increased if processes would have different numbers of batches.
        collate: collate function.
        trainer: Trainer that evaluates; None for a single process.
    """
    sampler = None
    options = trainer.distributed_sampler_kwargs if trainer is not None else None
    if options and options["num_replicas"] > 1:
        sampler = EvaluationSampler(dataset, options["num_replicas"], options["rank"])
        batch_size = even_batch_size(batch_size, sampler.total_size, sampler.num_replicas)
    return DataLoader(
        dataset,
        # Keyword arguments, from which Lightning builds the DataLoader again for predictions.
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        pin_memory=should_pin(dataset),
        # Each iteration of a DataLoader draws a random number. With a separate generator, validation does not change
        # the random numbers of training.
        generator=torch.Generator(),
    )
