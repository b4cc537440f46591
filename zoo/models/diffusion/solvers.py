"""ODE and SDE solvers for reverse diffusion, as functions of any denoiser.

The noise level sigma is the integration variable. Without noise the particles follow the probability flow,
dx / d sigma = (x - E[x_0 | x]) / sigma (Song et al. 2021, arXiv 2011.13456, eq. 13, in the form of Karras et al. 2022,
arXiv 2206.00364, eq. 1). Every solver is a generator that yields the particles after each step, in float64; its
docstring says how many evaluations of the denoiser a step needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError, check_at_least, check_at_most, check_choice
from zoo.models.diffusion.process import Process

MOST_STEPS = 100_000  # more would take hours, and no solver needs a hundredth of them

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """Noise levels from `sigma_max` down to `sigma_min`, and 0: steps + 1 of them (Karras et al. 2022, eq. 5).

    Args:
        steps: number of steps.
        sigma_min: lowest noise level above 0, from which a sample is denoised in one step.
        sigma_max: highest noise level.
        rho: exponent of the spacing; 1 for equal steps, higher values for finer steps at low noise.
    """
    check_at_least(1, steps=steps)
    check_at_most(MOST_STEPS, steps=steps)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UserError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must be above 0, finite, and in this order")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + index / max(1, steps - 1) * (low - high)) ** rho for index in range(steps)] + [0.0]


def state_dtype(device: torch.device | str) -> torch.dtype:
    """Dtype of the solvers' states: float64 against rounding, float32 on Apple's GPUs, which lack float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None) -> Iterator[Tensor]:
    """Euler's method on the probability flow, also known as DDIM; order 1, one evaluation a step."""
    for sigma, after in pairwise(sigmas):
        x = torch.lerp(denoise(x, sigma), x, after / sigma)
        yield x


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None) -> Iterator[Tensor]:
    """Heun's method (Karras et al. 2022, algorithm 1); order 2, two evaluations a step, one in the last, to 0."""
    for sigma, after in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (ahead - denoise(ahead, after)) / after) / 2
            ahead = x + (after - sigma) * slope
        x = ahead
        yield x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); order 2, one evaluation a step.

    The integration variable is -ln sigma; the linear part is integrated exactly. The last step, to 0, is of order 1,
    because it has infinite length in this variable.
    """
    before: tuple[Tensor, float] | None = None
    for sigma, after in pairwise(sigmas):
        now = denoise(x, sigma)
        target = now
        if before is not None and after > 0:
            ratio = math.log(sigma / after) / math.log(before[1] / sigma)
            target = now + ratio / 2 * (now - before[0])
        x = torch.lerp(target, x, after / sigma)
        before = now, sigma
        yield x


def ipndm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None) -> Iterator[Tensor]:
    """The iPNDM of Zhang and Chen 2023 (arXiv 2204.13902, section 3.3); one evaluation a step.

    Adams-Bashforth of order 4 with its weights for equal steps, lower orders at the start. Steps of unequal length
    reduce it to order 2, with a small constant if the lengths change slowly.
    """
    weights = {1: (1.0,), 2: (-1 / 2, 3 / 2), 3: (5 / 12, -4 / 3, 23 / 12), 4: (-3 / 8, 37 / 24, -59 / 24, 55 / 24)}
    slopes: list[Tensor] = []
    for sigma, after in pairwise(sigmas):
        slopes = [*slopes, (x - denoise(x, sigma)) / sigma][-4:]
        if after == 0:  # the slope there is not known from those before
            slopes = slopes[-1:]
        for weight, slope in zip(weights[len(slopes)], slopes, strict=True):
            x = x + (after - sigma) * weight * slope
        yield x


def deis(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None, order: int = 4, rho: float = 7.0
) -> Iterator[Tensor]:
    """The multistep method of Zhang and Chen 2023 (section 3.2, "tAB-DEIS"), in the variable sigma^(1/rho).

    The polynomial through the last slopes is integrated exactly. In sigma itself it would oscillate, because the first
    steps are thousands of times as long as the last; in sigma^(1/rho) those of `karras_sigmas` are equal. One
    evaluation a step, lower orders at the start.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: particles, (N, ...).
        sigmas: noise levels.
        noise: not used.
        order: number of slopes that the polynomial interpolates.
        rho: exponent of the integration variable; that of the noise levels is best.
    """
    clock = [sigma ** (1 / rho) for sigma in sigmas]
    slopes: list[Tensor] = []
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        slopes = [*slopes, (x - denoise(x, sigma)) / sigma][-order:]
        if after == 0:
            slopes = slopes[-1:]
        nodes = clock[index + 1 - len(slopes) : index + 1]
        for weight, slope in zip(_integrals(nodes, clock[index], clock[index + 1], rho), slopes, strict=True):
            x = x + weight * slope
        yield x


def _integrals(nodes: Sequence[float], start: float, end: float, rho: float) -> list[float]:
    """Integrals over sigma = u^rho, from u = start to end, of the Lagrange polynomials of the nodes."""
    points, weights = np.polynomial.legendre.leggauss(16)
    u = (start + end) / 2 + (end - start) / 2 * points
    d_sigma = (end - start) / 2 * weights * rho * u ** (rho - 1)
    others = [[other for other in nodes if other != node] for node in nodes]
    bases = [
        math.prod(((u - k) / (node - k) for k in rest), start=1.0) for node, rest in zip(nodes, others, strict=True)
    ]
    return [float((basis * d_sigma).sum()) for basis in bases]


def ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None, amount: float = 1.0
) -> Iterator[Tensor]:
    """Ancestral sampling, from the probability flow to the reverse SDE, exact for a given E[x_0 | x]; order 1.

    With noise of lambda sqrt(2D) and drift (1 + lambda^2) D grad ln p, a step from sigma to sigma' has the mean
    x_0 + (sigma' / sigma)^(1 + lambda^2) (x - x_0) and the variance sigma'^2 (1 - (sigma' / sigma)^(2 lambda^2)).
    Lambda 0 is Euler's method; 1 is the bridge from x to x_0, DDPM's ancestral step (Ho et al. 2020, arXiv 2006.11239,
    eq. 6 and 7). One evaluation a step.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: particles, (N, ...).
        sigmas: noise levels, descending to 0.
        noise: function that draws standard normal noise of the shape of x.
        amount: amplitude lambda of the noise.
    """
    for sigma, after in pairwise(sigmas):
        ratio = after / sigma
        x = torch.lerp(denoise(x, sigma), x, ratio ** (1 + amount**2))
        if amount > 0 and after > 0:
            x = x + after * math.sqrt(1 - ratio ** (2 * amount**2)) * _draw(noise)
        yield x


def predictor_corrector(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None, amount: float = 0.16
) -> Iterator[Tensor]:
    """An ancestral step, then a step of Langevin dynamics at the new noise level.

    Song et al. 2021, algorithm 2; two evaluations a step, one in the last. The corrector moves by
    h grad ln p + sqrt(2h) xi, which leaves p as it is for small h; here h = (amount sigma)^2.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: particles, (N, ...).
        sigmas: noise levels, descending to 0.
        noise: function that draws standard normal noise of the shape of x.
        amount: noise of the corrector as a fraction of sigma.
    """
    for sigma, after in pairwise(sigmas):
        (x,) = ancestral(denoise, x, (sigma, after), noise)
        if after > 0:
            step = (amount * after) ** 2
            score = (denoise(x, after) - x) / after**2
            x = x + step * score + math.sqrt(2 * step) * _draw(noise)
        yield x


def reverse_process(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise | None = None,
    process: Process = Process(),  # noqa: B008 # frozen
) -> Iterator[Tensor]:
    """The lecture's reversed film: free particles under the force f' = 2 k_B T grad ln p, with the noise sqrt(2D).

    The Euler-Maruyama method in physical time t = sigma^2 / 2D; order 1, one evaluation a step, and hundreds of steps,
    since a step must be short beside sigma^2 / 2D. The last step, to 0, has no noise. D and k_B T set the units of time
    and force, and drop out of the samples.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: particles, (N, ...).
        sigmas: noise levels, descending to 0.
        noise: function that draws standard normal noise of the shape of x.
        process: free Brownian motion, with its D and k_B T.
    """

    def score(x: Tensor, t: float) -> Tensor:
        return process.score(x, denoise(x, process.sigma(t)), t)

    for sigma, after in pairwise(sigmas):
        if after > 0:
            times = process.time(sigma), process.time(after)
            x = process.reverse(x, score, times, draw=lambda: _draw(noise))
        else:
            x = denoise(x, sigma)
        yield x


def _draw(noise: Noise | None) -> Tensor:
    if noise is None:
        raise UserError("this solver needs noise; pass a function that draws it, such as a SampleNoise")
    return noise()


SOLVERS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": ipndm,
    "deis": deis,
    "ancestral": ancestral,
    "predictor_corrector": predictor_corrector,
    "reverse_process": reverse_process,
}

#: Solvers without random numbers, which also run from data to noise.
DETERMINISTIC = ("euler", "heun", "dpmpp_2m", "ipndm", "deis")


@dataclass(frozen=True)
class Solution:
    """Result of `solve`.

    Attributes:
        x: particles at the last noise level, float64 (N, ...).
        evaluations: number of evaluations of the denoiser per particle.
        states: particles at each noise level, (len(sigmas), N, ...), if requested.
    """

    x: Tensor
    evaluations: int
    states: Tensor | None = None


def solve(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    solver: str = "dpmpp_2m",
    noise: Noise | None = None,
    trajectory: bool = False,
    **options: Any,
) -> Solution:
    """Integrates particles from the first noise level to the last.

    Args:
        denoise: E[x_0 | x] as a function of x, float64 (N, ...), and sigma.
        x: particles at the first noise level, (N, ...).
        sigmas: noise levels, descending to generate, ascending to invert.
        solver: name of the solver, one of `SOLVERS`.
        noise: function that draws standard normal noise of the shape of x, for stochastic solvers.
        trajectory: keep the state at every noise level.
        **options: further arguments of the solver.
    """
    check_choice("solver", solver, SOLVERS)
    count = 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal count
        count += 1
        return denoise(x, sigma).to(x.dtype)

    x = x.to(state_dtype(x.device))
    states = [x]
    for state in SOLVERS[solver](counted, x, sigmas, noise, **options):
        states = [*states, state] if trajectory else [state]
    return Solution(states[-1], count, torch.stack(states) if trajectory else None)
