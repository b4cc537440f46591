"""The force in closed form, of a density that is known: a sum of deltas at the training data, or of Gaussians.

The lecture starts from p_0, a sum of deltas at the training samples x_n. Diffusion makes it a mixture of Gaussians of
the width sigma, whose score is known: grad ln p = (E[x_0 | x] - x) / sigma^2, where E[x_0 | x] is the mean of the x_n
with the weights softmax(-|x - x_n|^2 / 2 sigma^2). It is what a network learns to approximate, and must not reach: this
force leads every particle back to a training sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from zoo.errors import UserError

CHUNK = 2**24  # distances held at a time


def column(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Noise levels, one number or (N,), as a tensor that broadcasts against `x` (N, ...), in its precision."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


class Force(ABC):
    """A denoiser, the score that follows from it, and the force that drives the reversed diffusion.

    The process is the free one, x = x_0 + sigma N(0, 1); `zoo.diffusion.Process` translates to others.

    Attributes:
        temperature: k_B T, the unit of the force.
    """

    temperature: float = 1.0

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x], (N, ...), of noisy samples `x` (N, ...) with noise `sigma`, one number or (N,)."""

    def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """grad ln p_sigma(x), (N, ...): Tweedie's formula (Efron 2011); it diverges as sigma goes to 0."""
        return (self.denoise(x, sigma, labels) - x) / column(sigma, x).square()

    def force(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The lecture's f' = 2 k_B T grad ln p_sigma(x), (N, ...), in units of energy / length."""
        return 2 * self.temperature * self.score(x, sigma, labels)


class AnalyticForce(Force):
    """The exact force of a mixture: of deltas at the data, or, with a width, of Gaussians.

    Distances are summed from differences, since |a|^2 + |b|^2 - 2ab loses all digits where sigma is small; the weights
    are a softmax, which neither overflows nor divides zero by zero.

    Args:
        data: the centers x_n, (N, ...).
        labels: of the centers, int64 (N,); then `denoise` takes labels too.
        weights: of the centers, (N,), equal where they are not given.
        std: standard deviation of each Gaussian in every direction; 0 for deltas.
        temperature: k_B T.
    """

    def __init__(
        self,
        data: Tensor,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        std: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        if len(data) == 0:
            raise UserError("the analytic force needs at least one sample")
        self.data = data
        self.labels = labels
        self.std = std
        self.temperature = temperature
        weights = torch.ones(len(data)) if weights is None else weights
        self.log_weights = (weights.double() / weights.double().sum()).log().to(data)

    def _log_joint(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """ln of weight times kernel, up to the kernel's volume: x (N, ...) and sigma (N, 1) to (N, number of data)."""
        centers = self.data.flatten(1).to(x)
        distance = torch.cdist(x.flatten(1), centers, compute_mode="donot_use_mm_for_euclid_dist")
        joint = self.log_weights.to(x) - distance.square() / (2 * (sigma.square() + self.std**2))
        if labels is not None:
            if self.labels is None:
                raise UserError("this analytic force was built without labels, so it cannot be asked for one")
            joint = joint.masked_fill(self.labels.to(x.device) != labels.to(x.device).unsqueeze(1), -math.inf)
        return joint

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        sigmas = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        centers = self.data.flatten(1).to(x)
        rows = max(1, CHUNK // len(centers))
        parts = []
        for start in range(0, len(x), rows):
            piece, s = x[start : start + rows], sigmas[start : start + rows, None]
            posterior = self._log_joint(piece, s, None if labels is None else labels[start : start + rows]).softmax(1)
            mean = posterior @ centers
            # Within a Gaussian of its own width the particle is drawn towards the centre only so far.
            share = self.std**2 / (self.std**2 + s.square())
            parts.append((mean + share * (piece.flatten(1) - mean)).view_as(piece))
        return torch.cat(parts) if parts else x.clone()

    def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """ln p_sigma(x), (N,), of `x` (N, ...); with labels, of the joint density of both."""
        sigmas = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)).unsqueeze(1)
        variance = sigmas.square().squeeze(1) + self.std**2
        volume = x[0].numel() / 2 * (2 * math.pi * variance).log()
        return self._log_joint(x, sigmas, labels).logsumexp(1) - volume
