"""ScalarAdam on two ranks: replicated, sharded, and resumed from a distributed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.two_ranks import SCALES, SCOPES
from zoo.optim import ScalarAdam

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(two_ranks: Path) -> list[dict[Any, Any]]:
    """Parameters after training, by rank and by the name of the run."""
    return [torch.load(two_ranks / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def assert_alike(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_two_ddp_ranks_train_as_one_process_on_the_whole_batch(found, scope, scale):
    first, second = (one["ddp", scope, scale] for one in found)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_alike(first, found[0]["one", scope, scale])


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_sharded_parameters_train_as_unsharded_ones(found, scope, scale, foreach):
    assert_alike(found[0]["sharded", scope, scale, foreach], found[0]["one", scope, scale])


@pytest.mark.parametrize("scope", SCOPES)
def test_replicated_shards_are_counted_once(found, scope):
    assert_alike(found[0]["hybrid", scope], found[0]["one", scope, "norm"])


@pytest.mark.parametrize("scope", SCOPES)
def test_a_distributed_checkpoint_resumes_a_sharded_run_bit_for_bit(found, scope):
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one["whole", scope], one["resumed", scope], strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_partial_gradients_are_reduced_before_the_norm_is_taken(found, scope):
    assert found[0]["partial gradient"]
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = nn.Parameter(torch.ones(5, 3, dtype=torch.float64))
    optimizer = ScalarAdam([w], lr=0.05, scope=scope)
    for _ in range(4):
        optimizer.zero_grad()
        (x @ w).pow(2).sum().backward()
        optimizer.step()
    assert_alike([found[0]["partial", scope]], [w.detach()])


def test_parameters_flattened_by_fsdp1_are_refused(found):
    assert all("fully_shard" in one["fsdp1"] for one in found)
