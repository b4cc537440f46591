"""Temperature scaling: one number that calibrates a classifier's probabilities (Guo et al. 2017, arXiv 1706.04599).

Logits are divided by a temperature T, which leaves the most probable class as it is. T minimizes the negative
log-likelihood (NLL) of held-out samples (section 4.2). The NLL is convex in 1 / T, so that Newton's method finds the
minimum in a few steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

#: Least and greatest temperature. Where every sample is classified correctly, the NLL has no minimum: it falls with T.
BOUNDS = (0.05, 20.0)
TOLERANCE = 1e-5  # relative, of 1 / T


class TemperatureFit(NamedTuple):
    """A temperature, and what it does to the samples it was fitted on.

    Attributes:
        temperature: T, within `BOUNDS`; NaN if a logit is not finite.
        nll_before: mean NLL of the logits, in nats.
        nll_after: mean NLL of the logits divided by T, in nats.
    """

    temperature: float
    nll_before: float
    nll_after: float


def fit_temperature(logits: Tensor, y: Tensor) -> TemperatureFit:
    """Temperature that minimizes the NLL, by Newton's method in 1 / T; steps out of the bracket are bisections.

    Args:
        logits: (N, C).
        y: labels, int64 (N,).
    """
    if not logits.isfinite().all():
        return TemperatureFit(math.nan, math.nan, math.nan)
    z = logits.float() - logits.float().amax(1, keepdim=True)
    own = z.gather(1, y[:, None]).squeeze(1)
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    beta, following = math.nan, 1.0
    while not abs(following - beta) <= TOLERANCE * following:
        beta = following
        p = (beta * z).softmax(1)
        mean = (p * z).sum(1)
        slope = (mean - own).mean().item()
        curvature = ((p * z.square()).sum(1) - mean.square()).mean().item()
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else math.inf
        following = newton if low < newton < high else math.sqrt(low * high)
    return TemperatureFit(1 / following, _nll(z, y), _nll(z * following, y))


def _nll(logits: Tensor, y: Tensor) -> float:
    return F.cross_entropy(logits, y).item()


class TemperatureScaling(Metric):
    """Keeps logits and labels, and fits their temperature; several processes fit that of all samples."""

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, y: Tensor) -> None:
        """Adds a batch of logits (N, C) with their labels, int64 (N,)."""
        self.logits.append(logits.detach())
        self.labels.append(y)

    def compute(self) -> TemperatureFit:
        """Fits the temperature of all logits so far."""
        with torch.no_grad():
            return fit_temperature(dim_zero_cat(self.logits), dim_zero_cat(self.labels))
