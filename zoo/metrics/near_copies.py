"""Share of generated samples that lie unusually near to the training data, by which memorization shows.

The yardstick is the distance of held-out samples to their nearest training sample: 1% of them lie below its 1%
quantile, and so do 1% of the samples of a generator that draws new ones. A median or a mean of the distances would hide
copies that are fewer than half, or that are mixed with poor samples, which lie far from everything.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from zoo.metrics.device import FixedPrecisionMetric

CHUNK = 2**24  # distances in memory at a time


def nearest_samples(x: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest sample of the data to each sample.

    Args:
        x: samples, (N, ...).
        data: samples to search, (M, ...).

    Returns:
        Euclidean distances (N,), exactly 0 for copies; and indices in the data, int64 (N,).
    """
    x, data = x.flatten(1), data.flatten(1)
    # The search by matrix products is fast, but inexact for small distances, which are computed again.
    parts = x.split(max(1, CHUNK // len(data)))
    index = torch.cat([torch.cdist(part, data).argmin(1) for part in parts])
    found = [(part - data[of]).norm(dim=1) for part, of in zip(parts, index.split(len(parts[0])), strict=True)]
    return torch.cat(found), index


def nearest_distances(x: Tensor, data: Tensor) -> Tensor:
    """Distances (N,) of `nearest_samples`."""
    return nearest_samples(x, data)[0]


class NearShare(NamedTuple):
    """Result of `NearCopies`; all scalars.

    Attributes:
        share: share of the samples within the quantile of the held-out samples' distances; NaN without samples.
        expected: the share to expect if nothing is copied.
        limit: share above which chance is no explanation: five standard errors above the expected one.
    """

    share: Tensor
    expected: Tensor
    limit: Tensor


class NearCopies(FixedPrecisionMetric):
    """Share of samples that are nearer to the training data than nearly all held-out samples are.

    Distances are stored until `compute`, and gathered from all ranks.

    Args:
        quantile: share of the held-out samples below the threshold. With fewer than 1 / quantile of them, the
            threshold is the least of their distances, and the expected share is higher.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    samples: list[Tensor]
    held_out: list[Tensor]

    def __init__(self, quantile: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.quantile = quantile
        self.add_state("samples", [], dist_reduce_fx="cat")
        self.add_state("held_out", [], dist_reduce_fx="cat")

    def update(self, samples: Tensor, held_out: Tensor) -> None:
        """Adds distances to the nearest training sample, of generated samples (N,) and of held-out ones (M,)."""
        self.samples.append(samples.detach().float())
        self.held_out.append(held_out.detach().float())

    def compute(self) -> NearShare:
        """Share, its expectation and its limit."""
        samples, held_out = dim_zero_cat(self.samples), dim_zero_cat(self.held_out).sort().values
        n, m = len(samples), len(held_out)
        if not n or not m:
            nan = samples.new_full((), math.nan)
            return NearShare(nan, nan, nan)
        # Of m held-out samples the r-th smallest distance is in expectation the quantile r / (m + 1).
        rank = max(1.0, self.quantile * (m + 1))
        low = int(rank) - 1
        threshold = torch.lerp(held_out[low], held_out[min(low + 1, m - 1)], rank - int(rank))
        # Held-out samples that are copies themselves share one distance, 0.
        expected = (held_out <= threshold).float().mean().clamp_min(rank / (m + 1))
        error = (expected * (1 - expected) * (1 / n + 1 / m)).sqrt()
        return NearShare((samples <= threshold).float().mean(), expected, expected + 5 * error)
