"""Wasserstein-1 distance between two sets of points: exact in one dimension, sliced in more dimensions.

In one dimension the optimal transport preserves the order of the points, so the distance is the mean absolute
difference of the quantile functions (Peyré and Cuturi 2019, arXiv 1803.00567, eq. 2.35). The sliced distance (Bonneel
et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures") is its mean over projections on random directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from zoo.metrics.device import FixedPrecisionMetric


class SlicedWasserstein(FixedPrecisionMetric):
    """Sliced Wasserstein-1 distance between real and generated points, in the units of the points.

    All points are stored until `compute`, and gathered from all ranks. The numbers of real and generated points may
    differ. Translation by a vector s gives a distance of |s| for D = 1 and E|cos| |s| for D > 1 (2/pi |s| for D = 2).

    Args:
        dimension: dimension D of the points.
        projections: number of random directions; for D = 1 there is only one, and the distance is exact.
        seed: random seed of the directions, which are the same on all ranks and in all epochs.

    Raises:
        ValueError: `dimension` or `projections` is below 1.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    directions: Tensor
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, dimension: int, projections: int = 128, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dimension < 1 or projections < 1:
            raise ValueError(f"dimension {dimension} and projections {projections} must both be at least 1")
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(dimension, projections, generator=generator, device="cpu", dtype=torch.float32)
        directions = torch.ones_like(directions[:, :1]) if dimension == 1 else directions / directions.norm(dim=0)
        self.register_buffer("directions", directions, persistent=False)  # (D, projections)
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, real: bool) -> None:
        """Adds points (N, D) to the real or the generated ones.

        Raises:
            ValueError: `x` does not have the shape (N, D).
        """
        if x.ndim != 2 or x.shape[1] != len(self.directions):
            raise ValueError(f"points of shape {tuple(x.shape)}; expected (N, {len(self.directions)})")
        (self.real if real else self.fake).append(x.detach().float())

    def compute(self) -> Tensor:
        """Distance, a float32 scalar; NaN if there are no real or no generated points."""
        # A state is a list until the ranks are gathered, then a tensor.
        if not len(self.real) or not len(self.fake):
            return self.directions.new_full((), torch.nan)
        # Float64 also excludes autocast and TF32 from the projection; Apple's GPUs (MPS) lack it.
        dtype = torch.float32 if self.directions.device.type == "mps" else torch.float64
        directions = self.directions.to(dtype)
        real, fake = (dim_zero_cat(points).to(dtype) @ directions for points in (self.real, self.fake))
        return wasserstein1(real, fake).mean().float()


def wasserstein1(x: Tensor, y: Tensor) -> Tensor:
    """Exact Wasserstein-1 distance between two sets of numbers.

    The quantile function of n points is a step function with steps of width 1/n. Both functions are constant between
    adjacent breakpoints i/n and j/m, which are computed as integer multiples of 1/(nm).

    Args:
        x: first set, (n, ...).
        y: second set, (m, ...).

    Returns:
        Distance for each of the further dimensions, (...).
    """
    n, m = len(x), len(y)
    breaks = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique().to(x.device)
    start, weight = breaks[:-1], breaks.diff().to(x.dtype) / (n * m)
    difference = x.sort(dim=0).values[start // m] - y.sort(dim=0).values[start // n]
    return torch.tensordot(weight, difference.abs(), dims=1)
