"""Training samples on which an averaged network's statistics of batch normalization are measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, IterableDataset

from zoo.contracts import data_of
from zoo.seeding import capture_random_state, restore_random_state

#: Number of samples, in batches of the size of training: with fewer, the statistics of the last layers are noisy.
SAMPLES = 512


def has_samples(model: LightningModule) -> bool:
    """Whether the training data of a model's Trainer is one loader of samples that are found by their index."""
    loader = model.trainer.train_dataloader
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def training_batches(model: LightningModule) -> Iterator[Any]:
    """Batches as in training, augmented, on the model's device: the same ones at each call and on each rank.

    To be read in `as_in_training`. The loader of the training, its workers and its position are left alone.
    """
    trainer, data = model.trainer, data_of(model.trainer)
    loader: Any = trainer.train_dataloader
    dataset, size = loader.dataset, getattr(loader.batch_sampler, "batch_size", None) or 1
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[: max(SAMPLES, size)]
    for indices in order[: max(size, len(order) // size * size)].split(size):
        if loader.batch_sampler is None:  # an element of the dataset is a batch
            samples = dataset[int(indices)]
        elif hasattr(dataset, "__getitems__"):
            samples = dataset.__getitems__(indices.tolist())
        else:
            samples = [dataset[index] for index in indices.tolist()]
        batch = trainer.precision_plugin.convert_input(loader.collate_fn(samples))
        batch = (model if data is None else data).on_before_batch_transfer(batch, 0)
        yield trainer.strategy.batch_to_device(batch, model.device)


@contextmanager
def as_in_training(model: LightningModule) -> Iterator[None]:
    """Lets data be augmented as in training, by the same random numbers each time; restores all random states."""
    trainer = model.trainer
    stage, states = trainer.state.stage, capture_random_state(model.device)
    trainer.state.stage = RunningStage.TRAINING
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    try:
        with trainer.precision_plugin.forward_context():
            yield
    finally:
        trainer.state.stage = stage
        restore_random_state(states, model.device)
