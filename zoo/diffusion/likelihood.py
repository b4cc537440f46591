"""The likelihood of a sample, by following it along the probability flow to where the density is known.

Along the flow dx / d ln(sigma) = x - E[x_0 | x] the density changes by the flow's divergence (Chen et al. 2018, arXiv
1806.07366, theorem 1; Song et al. 2021, arXiv 2011.13456, section 4.3): ln p(x) at the lowest noise level is ln p at
the highest one, where it is a normal distribution, plus the integral of the divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.diffusion.samplers import Denoise, state_dtype
from zoo.errors import UserError

EXACT = 64  # dimensions up to which the divergence is computed exactly


@dataclass(frozen=True)
class Likelihood:
    """Of each of N samples.

    Attributes:
        log_prob: ln p(x), in nats, (N,), float64.
        evaluations: how often the denoiser was asked, for each sample.
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
    """ln p of samples at the lowest noise level, by scipy's adaptive Runge-Kutta method of order 5.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma, differentiable.
        x: samples, (N, ...).
        sigma_min: the lowest noise level.
        sigma_max: the highest one, where x is taken to be normal.
        mean: of the data.
        sigma_data: standard deviation of the data about it.
        probes: random vectors by which the divergence is estimated (Hutchinson 1990), each with entries of +-1; 0 for
            the exact divergence, None for that up to 64 dimensions and one vector above.
        generator: of the random vectors.
        tolerance: relative and absolute, of the solver.

    Raises:
        UserError: the solver did not get to the end.
    """
    from scipy.integrate import solve_ivp

    shape, dimensions, dtype = x.shape, x[0].numel(), state_dtype(x.device)
    probes = (0 if dimensions <= EXACT else 1) if probes is None else probes
    signs = torch.randint(2, (probes, *shape), generator=generator).mul(2).sub(1).to(x.device).to(dtype)
    evaluations = 0

    def flow(clock: float, state: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        at = torch.from_numpy(state[: x.numel()]).to(x.device).to(dtype).view(shape)
        with torch.enable_grad():
            at.requires_grad_()
            denoised = denoise(at, math.exp(clock)).to(dtype)
            trace = _trace_by_probes(denoised, at, signs) if probes else _exact_trace(denoised, at)
        velocity = (at - denoised).detach().flatten()
        return torch.cat([velocity, dimensions - trace]).double().cpu().numpy()

    start = torch.cat([x.detach().flatten().double().cpu(), torch.zeros(len(x), dtype=torch.float64)]).numpy()
    span = (math.log(sigma_min), math.log(sigma_max))
    solution = solve_ivp(flow, span, start, rtol=tolerance, atol=tolerance, t_eval=span[1:])
    if not solution.success:
        raise UserError(f"the likelihood could not be integrated: {solution.message}")
    end = torch.from_numpy(solution.y[:, -1])
    center = mean.detach().double().cpu() if isinstance(mean, Tensor) else mean
    distance = (end[: x.numel()].view(shape) - center).flatten(1).square().sum(1)
    variance = sigma_max**2 + sigma_data**2
    log_prob = -distance / (2 * variance) - dimensions / 2 * math.log(2 * math.pi * variance)
    return Likelihood(log_prob + end[x.numel() :], evaluations)


def _exact_trace(denoised: Tensor, x: Tensor) -> Tensor:
    """Trace of the Jacobian of each sample's denoised (N, ...) by x (N, ...), (N,): a backward pass a dimension."""
    outputs, total = denoised.flatten(1), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for index in range(outputs.shape[1]):
        (gradient,) = torch.autograd.grad(outputs[:, index].sum(), x, retain_graph=True)
        total = total + gradient.flatten(1)[:, index]
    return total


def _trace_by_probes(denoised: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """The same, estimated as the mean of v^T J v over the vectors v in `signs`, (probes, N, ...)."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for v in signs:
        (product,) = torch.autograd.grad(denoised, x, v, retain_graph=True)
        total = total + (product * v).flatten(1).sum(1)
    return total / len(signs)


def dequantize(x: Tensor, generator: torch.Generator | None = None, levels: int = 256) -> Tensor:
    """Pictures whose pixels have so many values in [-1, 1], each spread evenly over what is nearest to it.

    A density of discrete data is unbounded; the mean of ln p of the spread data is a lower bound of the discrete ln P
    (Theis et al. 2016, arXiv 1511.01844, section 3.1).
    """
    spread = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device).sub(0.5) * bin_width(levels)
    return x.to(state_dtype(x.device)) + spread.to(state_dtype(x.device))


def bin_width(levels: int = 256) -> float:
    """Distance of neighbouring values of a pixel, of so many in [-1, 1]."""
    return 2 / (levels - 1)


def bits_per_dimension(log_prob: Tensor, dimensions: int, levels: int = 256) -> Tensor:
    """Bits that a picture's pixels need, each, (N,), from the density of the spread picture, ln p (N,)."""
    return -(log_prob + dimensions * math.log(bin_width(levels))) / (dimensions * math.log(2))
