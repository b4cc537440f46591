"""Likelihood of a sample, by integration along the probability flow to a known density.

Along the flow dx / d ln(sigma) = x - E[x_0 | x] the density changes by the flow's divergence (Chen et al. 2018, arXiv
1806.07366, theorem 1; Song et al. 2021, arXiv 2011.13456, section 4.3): ln p(x) at the lowest noise level is ln p at
the highest one, where it is a normal distribution, plus the integral of the divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.models.diffusion.adaptive import dormand_prince
from zoo.models.diffusion.solvers import Denoise, state_dtype

EXACT = 64  # largest dimension for which the divergence is computed exactly by default


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of N samples.

    Attributes:
        log_prob: ln p(x) in nats, (N,), in the dtype of `zoo.models.diffusion.solvers.state_dtype`.
        evaluations: number of evaluations of the denoiser per sample.
    """

    log_prob: Tensor
    evaluations: int


def log_likelihood(
    denoise: Denoise,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    mean: Tensor | float = 0.0,
    sigma_data: float = 0.0,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-5,
) -> Likelihood:
    """ln p of samples at the lowest noise level, by an adaptive Runge-Kutta method of order 5.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma, differentiable.
        x: samples, (N, ...).
        sigma_min: lowest noise level.
        sigma_max: highest noise level, at which x is assumed to be normal.
        mean: mean of the data.
        sigma_data: standard deviation of the data about its mean.
        probes: number of random vectors with entries of +-1 by which the divergence is estimated (Hutchinson 1990); 0
            for the exact divergence (default: exact up to 64 dimensions, otherwise one vector).
        generator: random number generator of the vectors.
        tolerance: relative and absolute tolerance of the solver.

    Raises:
        UserError: the denoiser's output is NaN or Inf, or too rough for the tolerance.
    """
    shape, dimensions, dtype = x.shape, x[0].numel(), state_dtype(x.device)
    probes = (0 if dimensions <= EXACT else 1) if probes is None else probes
    signs = torch.randint(2, (probes, *shape), generator=generator).mul(2).sub(1).to(x.device).to(dtype)
    evaluations = 0

    def flow(log_sigma: float, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        position = state[: x.numel()].view(shape)
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            denoised = denoise(position, math.exp(log_sigma)).to(dtype)
            trace = _trace_by_probes(denoised, position, signs) if probes else _exact_trace(denoised, position)
        return torch.cat([(position - denoised).detach().flatten(), dimensions - trace])

    start = torch.cat([x.detach().to(dtype).flatten(), torch.zeros(len(x), dtype=dtype, device=x.device)])
    span = (math.log(sigma_min), math.log(sigma_max))
    try:
        end = dormand_prince(flow, span, start, rtol=tolerance, atol=tolerance)
    except ArithmeticError as error:
        raise UserError(f"the likelihood could not be integrated over ln sigma: {error}") from error
    center = mean.detach().to(end) if isinstance(mean, Tensor) else mean
    distance = (end[: x.numel()].view(shape) - center).flatten(1).square().sum(1)
    variance = sigma_max**2 + sigma_data**2
    log_prob = -distance / (2 * variance) - dimensions / 2 * math.log(2 * math.pi * variance)
    return Likelihood(log_prob + end[x.numel() :], evaluations)


def _exact_trace(denoised: Tensor, x: Tensor) -> Tensor:
    """Trace of the Jacobian of `denoised` (N, ...) by `x` (N, ...), (N,), with one backward pass per dimension."""
    outputs, total = denoised.flatten(1), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for index in range(outputs.shape[1]):
        (gradient,) = torch.autograd.grad(outputs[:, index].sum(), x, retain_graph=True)
        total = total + gradient.flatten(1)[:, index]
    return total


def _trace_by_probes(denoised: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """Estimate of the trace: mean of v^T J v over the vectors v in `signs`, (probes, N, ...)."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for v in signs:
        (product,) = torch.autograd.grad(denoised, x, v, retain_graph=True)
        total = total + (product * v).flatten(1).sum(1)
    return total / len(signs)


def dequantize(x: Tensor, generator: torch.Generator | None = None, levels: int = 256) -> Tensor:
    """Adds uniform noise of one quantization step to images whose pixels have `levels` values in [-1, 1].

    A density of discrete data is unbounded; the mean of ln p of dequantized data is a lower bound of the discrete ln P
    (Theis et al. 2016, arXiv 1511.01844, section 3.1).
    """
    spread = torch.rand(x.shape, generator=generator, dtype=torch.float64).sub(0.5) * bin_width(levels)
    return x.to(state_dtype(x.device)) + spread.to(state_dtype(x.device)).to(x.device)


def bin_width(levels: int = 256) -> float:
    """Quantization step of a pixel with `levels` values in [-1, 1]."""
    return 2 / (levels - 1)


def bits_per_dimension(log_prob: Tensor, dimensions: int, levels: int = 256) -> Tensor:
    """Bits per dimension, (N,), from ln p (N,) of dequantized images."""
    return -(log_prob + dimensions * math.log(bin_width(levels))) / (dimensions * math.log(2))
