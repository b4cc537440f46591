"""What several processes return, and which of their errors is reported."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
import torch.distributed as dist

from zoo import MLPClassifier
from zoo.testing import check_model
from zoo.testing.ranks import RankError, on_ranks


def sum_of_ranks() -> torch.Tensor:
    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    return torch.cat([total, torch.tensor([float(os.environ["RANK"])])])


def fail_on(rank: int) -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == rank:
        raise KeyError("the cause")
    dist.barrier()  # the connection to the other rank is lost


def test_each_rank_returns_what_it_has_found():
    assert [found.tolist() for found in on_ranks(sum_of_ranks, 3)] == [[6, 0], [6, 1], [6, 2]]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_that_caused_the_end_is_reported_with_its_rank(rank):
    with pytest.raises(RankError, match=f"on rank {rank}, KeyError: 'the cause'"):
        on_ranks(partial(fail_on, rank), 2)


@pytest.mark.slow
def test_processes_are_started_anew_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check_model(MLPClassifier, checks=["processes"], width=8, depth=1)
