"""The mean whose updates do not wait for the device."""

import pytest
import torch

from tests.helpers.meta import META, CountedTransfers
from zoo.metrics import Mean


def test_a_mean_is_weighted_and_not_changed_by_empty_updates():
    mean = Mean()
    mean.update(torch.tensor([1.0, 2.0]))
    mean.update(torch.tensor([[5.0]]), torch.tensor(2.0))
    mean.update(torch.empty(0))
    mean.update(9.0, 0.0)
    assert mean.compute().item() == pytest.approx((1 + 2 + 2 * 5) / 4)


def test_nan_among_the_values_is_not_left_out():
    mean = Mean()
    mean.update(torch.tensor([1.0, torch.nan]))
    assert mean.compute().isnan()


def test_an_update_reads_nothing_from_the_device():
    mean = Mean().to(META)
    with CountedTransfers() as counted:
        mean.update(torch.ones(3, device=META), torch.ones((), device=META))
    assert counted.step.operators["aten::sum"] == 2
    assert not counted.step.reads
    assert not counted.step.uploads
