"""The share of near copies, on digits of which some are training data."""

import pytest
import torch

from zoo.datamodules import Digits
from zoo.metrics import NearCopies, nearest_distances


@pytest.fixture(scope="module")
def distances():
    """Distances of digits to the nearest training digit: 300 validation digits, 297 test digits, and 300 of noise."""
    data = Digits()
    data.setup()
    train = data.split("train")[0]
    noise = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return [nearest_distances(x, train) for x in (data.split("val")[0], data.split("test")[0], noise)]


def measure(samples, held_out):
    metric = NearCopies()
    metric.update(samples, held_out)
    return metric.compute()


def test_of_held_out_pictures_one_in_a_hundred_is_as_near(distances):
    """On average over splits of all held-out digits into yardstick and samples, with hardly a false alarm."""
    generator, pool = torch.Generator().manual_seed(0), torch.cat(distances[:2])
    halves = [pool[torch.randperm(len(pool), generator=generator)].chunk(2) for _ in range(200)]
    results = [measure(*half) for half in halves]
    assert sum(result.share.item() for result in results) / 200 == pytest.approx(0.01, abs=0.002)
    assert sum(bool(result.share > result.limit) for result in results) <= 2


def test_held_out_digits_are_no_copies(distances):
    held_out, test, _ = distances
    share, expected, limit = measure(test, held_out)
    assert share <= limit
    assert expected.item() == pytest.approx(0.01, abs=0.004)
    assert limit < 0.06


@pytest.mark.parametrize("others", [1, 2], ids=["among unseen pictures", "among noise"])
@pytest.mark.parametrize("copied", [0.1, 0.45])
def test_copies_are_seen(distances, others, copied):
    samples = distances[others].clone()
    count = round(copied * len(samples))
    samples[:count] = 0
    share, _, limit = measure(samples, distances[0])
    assert share.item() == pytest.approx(copied, abs=0.03)
    assert share >= count / len(samples)
    assert share > limit


def test_copies_are_seen_where_held_out_data_has_some_itself(distances):
    held_out, test, _ = distances
    held_out = held_out.clone()
    held_out[:9] = 0
    share, expected, limit = measure(torch.cat([test, torch.zeros(50)]), held_out)
    assert expected.item() == pytest.approx(0.03)
    assert share.item() == pytest.approx(50 / 347)
    assert limit < share


def test_the_nearest_distance_is_exact_for_copies_and_for_any_batch(distances, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(200, 3, 16, 16, generator=generator) * 2 - 1
    x = torch.cat([data[50:90], torch.rand(7, 3, 16, 16, generator=generator)])
    whole = nearest_distances(x, data)
    assert torch.equal(whole[:40], torch.zeros(40))
    expected = torch.stack([(sample - data).flatten(1).norm(dim=1).min() for sample in x])
    torch.testing.assert_close(whole, expected)
    monkeypatch.setattr("zoo.metrics.near_copies.CHUNK", 1000)
    torch.testing.assert_close(nearest_distances(x, data), whole)
    assert nearest_distances(x[:0], data).shape == (0,)


def test_without_samples_the_share_is_nan_and_ranks_are_merged(distances):
    held_out, test, _ = distances
    assert measure(test[:0], held_out[:0]).share.isnan()
    ranks = [NearCopies() for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(test[rank::2], held_out[rank::2])
    ranks[0].merge_state(ranks[1])
    assert ranks[0].compute() == measure(test, held_out)
