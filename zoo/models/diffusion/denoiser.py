"""Denoisers: a network with preconditioning, and the ideal denoiser in closed form, in one interface.

The lecture starts from p_0, a sum of delta functions at the training samples x_n. Diffusion turns it into a mixture of
Gaussians of standard deviation sigma with the score grad ln p = (E[x_0 | x] - x) / sigma^2, where E[x_0 | x] is the
mean of the x_n with weights softmax(-|x - x_n|^2 / 2 sigma^2). A network approximates this denoiser, and must not match
it: the ideal denoiser leads every particle back to a training sample.

A network does not learn E[x_0 | x] itself, but a target from which it follows: a parametrization says which.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import UserError, check_choice
from zoo.models.precision import cast_to, full_float32, keep_precision, widen
from zoo.seeding import upload

CHUNK = 2**24  # distances in memory at a time
UNLABELLED = "this ideal denoiser was built without labels, so it cannot denoise by label"


def append_dims(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Reshapes noise levels, one number or (N,), to broadcast against `x` (N, ...), in the dtype of `x`."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


class ScoreModel(ABC):
    """A denoiser, its score, and the force that drives the reverse diffusion.

    The forward process is x = x_0 + sigma N(0, 1); `zoo.models.diffusion.process.Process` converts to others. To call
    a denoiser is the same as `denoise`: a solver takes it as it is.

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


class Scalings(NamedTuple):
    """Factors between a network and a denoiser, each (N,), for the noise levels sigma.

    The denoiser is mean + c_skip (x - mean) + c_out network(c_in (x - mean), c_noise).
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm(sigma: Tensor, sigma_data: Tensor) -> Scalings:
    """EDM: input, output and target of the network have unit variance at every noise level.

    Karras et al. 2022 (arXiv 2206.00364), table 1.
    """
    total = (sigma.square() + sigma_data.square()).sqrt()
    return Scalings((sigma_data / total).square(), sigma * sigma_data / total, 1 / total, sigma.log() / 4)


def flow(sigma: Tensor, sigma_data: Tensor) -> Scalings:
    """Flow matching along straight lines: the network predicts the velocity from data to noise.

    On the line x_t = (1 - t) x_0 + t z between a sample of unit variance and noise z, the target is dx_t / dt = z - x_0
    (rectified flow: Liu et al. 2023, arXiv 2209.03003, eq. 1). At the time t the noise level is sigma = t / (1 - t),
    and x = x_t / (1 - t): only the coordinates differ from those of diffusion, and all solvers apply. A log-normal
    sigma is the logit-normal t of Esser et al. 2024 (arXiv 2403.03206, section 3.1).
    """
    total = sigma + sigma_data
    # (sigma / sigma_data).log() is the logit of t; divided by 4 it is the range in which networks expect it.
    return Scalings(sigma_data / total, -sigma * sigma_data / total, 1 / total, (sigma / sigma_data).log() / 4)


PARAMETRIZATIONS: dict[str, Callable[[Tensor, Tensor], Scalings]] = {"edm": edm, "flow": flow}


class Denoiser(ScoreModel, nn.Module):
    """A network and its preconditioning: E[x_0 | x] as a function of noisy samples and their noise level.

    Args:
        network: network with `forward(x, c_noise, labels)`, from inputs (N, *input_shape), c_noise (N,) and labels,
            int64 (N,) or None, to (N, *input_shape).
        input_shape: shape of a sample, (C, H, W) or (D,).
        sigma_data: standard deviation of the data about its mean.
        parametrization: "edm" or "flow".
        channels_last: hand images to the network in the channels-last memory format.

    Attributes:
        mean: mean of the data, (*input_shape).
        sigma_data: standard deviation of the data about its mean, a scalar.
    """

    mean: Tensor
    sigma_data: Tensor

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        sigma_data: float = 0.5,
        parametrization: str = "edm",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        check_choice("parametrization", parametrization, PARAMETRIZATIONS)
        self.network = network
        self.scalings = PARAMETRIZATIONS[parametrization]
        self.channels_last = channels_last
        self.register_buffer("mean", torch.zeros(tuple(input_shape)))
        self.register_buffer("sigma_data", torch.tensor(sigma_data))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keep_precision(fn, (self.mean, self.sigma_data)), recurse)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the network; see `torch.nn.Module.compile`."""
        self.network.compile(*args, **kwargs)

    def outputs(self, x: Tensor, scalings: Scalings, labels: Tensor | None) -> Tensor:
        """The network's output, float32 (N, ...), for samples `x` (N, ...) and the scalings of their noise levels."""
        inputs = cast_to(self.network, (x - self.mean) * append_dims(scalings.c_in, x))
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return widen(self.network(inputs, cast_to(self.network, scalings.c_noise), labels))

    def combine(self, outputs: Tensor, x: Tensor, scalings: Scalings) -> Tensor:
        """E[x_0 | x], (N, ...), from the network's output for `x`."""
        c_skip, c_out = (append_dims(factor, x) for factor in scalings[:2])
        return self.mean + c_skip * (x - self.mean) + c_out * outputs

    def target(self, x_0: Tensor, x: Tensor, scalings: Scalings) -> Tensor:
        """Output (N, ...) for which `combine` returns the clean samples `x_0`."""
        c_skip, c_out = (append_dims(factor, x) for factor in scalings[:2])
        return (x_0 - self.mean - c_skip * (x - self.mean)) / c_out

    def forward(
        self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, guidance_scale: float = 0.0
    ) -> Tensor:
        """E[x_0 | x], float32 (N, ...).

        Args:
            x: noisy samples, (N, ...).
            sigma: noise level, above 0; one number or (N,).
            labels: classes of a conditional network, int64 (N,); None for the unconditional denoiser.
            guidance_scale: weight w of classifier-free guidance, E_class + w (E_class - E_none).
        """
        x = x.to(self.mean.dtype)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        scalings = self.scalings(sigma, self.sigma_data)
        outputs = self.outputs(x, scalings, labels)
        if guidance_scale:
            outputs = outputs.clone()  # a network in a CUDA graph writes its next output over this one
            outputs = outputs + guidance_scale * (outputs - self.outputs(x, scalings, None))
        return self.combine(outputs, x, scalings)

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        return self(x, sigma, labels)

    def loss(self, x_0: Tensor, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean squared error of the network's output per sample, (N,).

        Args:
            x_0: clean samples, (N, ...).
            x: noisy samples, (N, ...).
            sigma: noise levels, (N,).
            labels: classes, int64 (N,), or None.
        """
        scalings = self.scalings(sigma, self.sigma_data)
        return (self.outputs(x, scalings, labels) - self.target(x_0, x, scalings)).square().flatten(1).mean(1)

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight (N,) of the denoiser's squared error in the loss: 1 / c_out^2."""
        return self.scalings(sigma, self.sigma_data).c_out.pow(-2)


class IdealDenoiser(ScoreModel):
    """The exact denoiser of a mixture of delta functions at the data, or of Gaussians.

    Distances are computed from differences, since |a|^2 + |b|^2 - 2ab is inaccurate for small sigma; the weights are a
    softmax, which neither overflows nor divides zero by zero.

    Args:
        data: centers x_n, (N, ...).
        labels: classes of the centers, int64 (N,), which `denoise` needs if it is called with labels. It searches the
            centers of a label alone; for a label without any the result is NaN.
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
        self.labels = None if labels is None else labels.cpu()  # where a class is found without waiting for the device
        self.std = std
        self.temperature = temperature
        weights = torch.ones(len(data)) if weights is None else weights
        self.log_weights = (weights.double() / weights.double().sum()).log().to(data)

    def to(self, device: torch.device) -> IdealDenoiser:
        """The denoiser with its data on another device."""
        moved = copy.copy(self)
        moved.data, moved.log_weights = self.data.to(device), self.log_weights.to(device)
        return moved

    def _log_joint(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """ln(weight * kernel), unnormalized, for x (N, ...) and sigma (N, 1), of shape (N, number of centers)."""
        centers = self.data.flatten(1).to(x)
        distance = torch.cdist(x.flatten(1), centers, compute_mode="donot_use_mm_for_euclid_dist")
        joint = self.log_weights.to(x) - distance.square() / (2 * (sigma.square() + self.std**2))
        if labels is not None:
            if self.labels is None:
                raise UserError(UNLABELLED)
            joint = joint.masked_fill(self.labels.to(x.device) != labels.to(x.device).unsqueeze(1), -math.inf)
        return joint

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        sigmas = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        if labels is None:
            return self._denoise(x, sigmas)
        if self.labels is None:
            raise UserError(UNLABELLED)
        denoised, labels = torch.full_like(x, math.nan), labels.cpu()
        for label in labels.unique().tolist():
            own = (self.labels == label).nonzero().squeeze(1)
            if len(own):
                rows = upload((labels == label).nonzero().squeeze(1), x.device)
                denoised[rows] = self._of_class(own)._denoise(x[rows], sigmas[rows])
        return denoised

    def _of_class(self, own: Tensor) -> IdealDenoiser:
        """The denoiser of some of the centers, by their indices."""
        part = copy.copy(self)
        part.data, part.labels = self.data[upload(own, self.data.device)], None
        log_weights = self.log_weights[upload(own, self.log_weights.device)]
        part.log_weights = log_weights - log_weights.logsumexp(0)
        return part

    def _denoise(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """E[x_0 | x] for x (N, ...) and noise levels (N,), from all centers."""
        centers = self.data.flatten(1).to(x)
        rows = max(1, CHUNK // len(centers))
        parts = []
        for piece, s in zip(x.split(rows), sigmas.unsqueeze(1).split(rows), strict=True):
            with full_float32():  # rounded centers would be far away at low noise
                mean = self._log_joint(piece, s).softmax(1) @ centers
            # The mean given one Gaussian of finite width is between its center and x.
            weight = self.std**2 / (self.std**2 + s.square())
            parts.append((mean + weight * (piece.flatten(1) - mean)).view_as(piece))
        return torch.cat(parts)

    __call__ = denoise

    def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """ln p_sigma(x), (N,), for `x` (N, ...); with labels, ln of the joint density."""
        sigmas = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)).unsqueeze(1)
        variance = sigmas.square().squeeze(1) + self.std**2
        volume = x[0].numel() / 2 * (2 * math.pi * variance).log()
        return self._log_joint(x, sigmas, labels).logsumexp(1) - volume
