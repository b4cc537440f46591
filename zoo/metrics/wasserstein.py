"""The Wasserstein-1 distance of two clouds of points: exact on a line, averaged over directions in more dimensions.

On a line the best transport moves the points in their order, so the distance is the mean difference of the quantile
functions (Peyré and Cuturi, 2019, arXiv 1803.00567, equation 2.35). The sliced distance (Bonneel et al., 2015,
"Sliced and Radon Wasserstein Barycenters of Measures") is its mean over directions that the points are projected on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from zoo.metrics.device import FixedPrecisionMetric


class SlicedWasserstein(FixedPrecisionMetric):
    """Mean Wasserstein-1 distance of the projections of real and generated points, in the points' own units.

    All points are kept until `compute`, and gathered from all ranks. The numbers of real and of generated points may
    differ. A shift by the vector s counts |s| for D = 1 and E|cos| |s| in more dimensions (2/pi |s| for D = 2).

    Args:
        dimension: D of the points.
        projections: number of random directions; for D = 1 there is only one, and the distance is exact.
        seed: of the directions, which are the same on all ranks and in all epochs.

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
        """Adds the points `x`, (N, D), to the real or to the generated ones.

        Raises:
            ValueError: `x` is not of shape (N, D).
        """
        if x.ndim != 2 or x.shape[1] != len(self.directions):
            raise ValueError(f"points of shape {tuple(x.shape)}; expected (N, {len(self.directions)})")
        (self.real if real else self.fake).append(x.detach().float())

    def compute(self) -> Tensor:
        """The distance, a float32 scalar; nan while either side has no points."""
        # A list before the ranks are gathered, one tensor after.
        if not len(self.real) or not len(self.fake):
            return self.directions.new_full((), torch.nan)
        # In float64, which also keeps autocast and TF32 out of the projection; Apple's GPUs (MPS) do not have it.
        dtype = torch.float32 if self.directions.device.type == "mps" else torch.float64
        directions = self.directions.to(dtype)
        real, fake = (dim_zero_cat(points).to(dtype) @ directions for points in (self.real, self.fake))
        return wasserstein1(real, fake).mean().float()


def wasserstein1(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples on a line: `x` (n, ...) and `y` (m, ...), the distance (...).

    The quantile function of n points is a step function with steps of 1/n. Both are constant between two neighbours of
    the breakpoints i/n and j/m, which are counted in units of 1/(nm), so the sum is exact for all n and m.
    """
    n, m = len(x), len(y)
    breaks = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique().to(x.device)
    start, weight = breaks[:-1], breaks.diff().to(x.dtype) / (n * m)
    difference = x.sort(dim=0).values[start // m] - y.sort(dim=0).values[start // n]
    return torch.tensordot(weight, difference.abs(), dims=1)
