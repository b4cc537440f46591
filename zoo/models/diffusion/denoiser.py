"""Interface of denoisers, and the ideal denoiser in closed form.

The lecture starts from p_0, a sum of delta functions at the training samples x_n. Diffusion turns it into a mixture of
Gaussians of standard deviation sigma with the score grad ln p = (E[x_0 | x] - x) / sigma^2, where E[x_0 | x] is the
mean of the x_n with weights softmax(-|x - x_n|^2 / 2 sigma^2). A network approximates this denoiser, and must not match
it: the ideal denoiser leads every particle back to a training sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from zoo.errors import UserError

CHUNK = 2**24  # distances in memory at a time


def append_dims(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Reshapes noise levels, one number or (N,), to broadcast against `x` (N, ...), in the dtype of `x`."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


class ScoreModel(ABC):
    """A denoiser, its score, and the force that drives the reverse diffusion.

    The forward process is x = x_0 + sigma N(0, 1); `zoo.models.diffusion.process.Process` converts to others.

    Attributes:
        temperature: thermal energy k_B T, the unit of the force.
    """

    temperature: float = 1.0

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x], (N, ...), for noisy samples `x` (N, ...) of noise level `sigma`, one number or (N,)."""

    def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """grad ln p_sigma(x), (N, ...): Tweedie's formula (Efron 2011); it diverges as sigma goes to 0."""
        return (self.denoise(x, sigma, labels) - x) / append_dims(sigma, x).square()

    def force(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The lecture's f' = 2 k_B T grad ln p_sigma(x), (N, ...), in units of energy / length."""
        return 2 * self.temperature * self.score(x, sigma, labels)


class IdealDenoiser(ScoreModel):
    """The exact denoiser of a mixture of delta functions at the data, or of Gaussians.

    Distances are computed from differences, since |a|^2 + |b|^2 - 2ab is inaccurate for small sigma; the weights are a
    softmax, which neither overflows nor divides zero by zero.

    Args:
        data: centers x_n, (N, ...).
        labels: classes of the centers, int64 (N,), which `denoise` needs if it is called with labels.
        weights: weights of the centers, (N,); equal by default.
        std: standard deviation of each Gaussian; 0 for delta functions.
        temperature: thermal energy k_B T.
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
            raise UserError("the ideal denoiser needs at least one sample")
        self.data = data
        self.labels = labels
        self.std = std
        self.temperature = temperature
        weights = torch.ones(len(data)) if weights is None else weights
        self.log_weights = (weights.double() / weights.double().sum()).log().to(data)

    def _log_joint(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """ln(weight * kernel), unnormalized, for x (N, ...) and sigma (N, 1), of shape (N, number of centers)."""
        centers = self.data.flatten(1).to(x)
        distance = torch.cdist(x.flatten(1), centers, compute_mode="donot_use_mm_for_euclid_dist")
        joint = self.log_weights.to(x) - distance.square() / (2 * (sigma.square() + self.std**2))
        if labels is not None:
            if self.labels is None:
                raise UserError("this ideal denoiser was built without labels, so it cannot denoise by label")
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
            # The mean given one Gaussian of finite width is between its center and x.
            weight = self.std**2 / (self.std**2 + s.square())
            parts.append((mean + weight * (piece.flatten(1) - mean)).view_as(piece))
        return torch.cat(parts) if parts else x.clone()

    def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """ln p_sigma(x), (N,), for `x` (N, ...); with labels, ln of the joint density."""
        sigmas = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)).unsqueeze(1)
        variance = sigmas.square().squeeze(1) + self.std**2
        volume = x[0].numel() / 2 * (2 * math.pi * variance).log()
        return self._log_joint(x, sigmas, labels).logsumexp(1) - volume
