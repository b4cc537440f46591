"""Evaluation on several processes: every sample once, and the same number of batches on each."""

from types import SimpleNamespace

import pytest
import torch

from zoo.datamodules.base import TensorBatches, identity_collate
from zoo.datamodules.evaluation import EvaluationSampler, evaluation_loader
from zoo.errors import UserError


def batches(samples: int, batch_size: int, processes: int) -> list[list[list[int]]]:
    """The samples in each batch of each process."""
    dataset = TensorBatches(torch.arange(samples), torch.zeros(samples))
    trainers = [
        SimpleNamespace(distributed_sampler_kwargs={"num_replicas": processes, "rank": rank} if processes > 1 else None)
        for rank in range(processes)
    ]
    return [
        [x.tolist() for x, _ in evaluation_loader(dataset, batch_size, identity_collate, trainer)]
        for trainer in trainers
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("samples", [5, 6, 7, 30, 31, 61, 100, 101, 102])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 10, 25, 50, 500])
def test_every_sample_is_in_one_batch_and_all_processes_have_the_same_number(samples, batch_size, processes):
    shares = batches(samples, batch_size, processes)
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(samples))
    assert len({len(share) for share in shares}) == 1
    sizes = [len(batch) for share in shares for batch in share]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + 1 or batch_size <= 3, "tiny batches grow by more than one"
    assert max(sizes) <= batch_size + 6


def test_processes_take_the_samples_in_turn():
    assert batches(7, 2, 2) == [[[0, 2], [4, 6]], [[1, 3], [5]]]


def test_one_process_has_batches_of_the_requested_size():
    assert [len(batch) for batch in batches(101, 25, 1)[0]] == [25, 25, 25, 25, 1]


def test_fewer_samples_than_processes_are_refused_on_every_rank():
    for rank in range(3):
        with pytest.raises(UserError, match=r"fewer samples to evaluate \(2\) than processes \(3\)"):
            EvaluationSampler(TensorBatches(torch.arange(2), torch.zeros(2)), 3, rank)
