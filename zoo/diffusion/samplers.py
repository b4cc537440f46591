"""Running the film backwards in few steps: solvers of the reversed diffusion, as functions of any denoiser.

The noise level sigma is the clock. Without noise of its own the film follows the probability flow, dx / d sigma =
(x - E[x_0 | x]) / sigma (Song et al. 2021, arXiv 2011.13456, eq. 13, in the form of Karras et al. 2022, arXiv
2206.00364, eq. 1). Every solver is a generator that yields the particles after each step, in float64, and asks the
denoiser as often as its docstring says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError, check_at_least, check_choice

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]


def noise_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """Noise levels from `sigma_max` down to `sigma_min`, and 0: steps + 1 of them (Karras et al. 2022, eq. 5).

    Args:
        steps: how many.
        sigma_min: the last but 0, at which what is left is denoised at once.
        sigma_max: the first.
        rho: 1 for equal steps; the higher, the finer at low noise.
    """
    check_at_least(1, steps=steps)
    if not 0 < sigma_min < sigma_max:
        raise UserError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must be above 0, and in this order")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + index / max(1, steps - 1) * (low - high)) ** rho for index in range(steps)] + [0.0]


class SampleNoise:
    """Normal random numbers with a stream for every sample, so that a sample does not depend on its batch.

    Args:
        seeds: one for each sample, int64 (n,).
        shape: of one sample.
        device: where the numbers go; they are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(self, seeds: Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> Tensor:
        """The next draw, float64 (n, *shape), or float32 where the device has nothing longer."""
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        noise = torch.stack(draws) if draws else torch.empty(0, *self.shape)
        return noise.to(self.device).to(state_dtype(self.device))


def state_dtype(device: torch.device | str) -> torch.dtype:
    """float64, which keeps rounding out of the solvers; float32 on Apple's GPUs, which have nothing longer."""
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

    The clock is -ln sigma; the linear part is integrated exactly. The last step, to 0, is of order 1, as an
    extrapolation would be divided by a step of infinite length.
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

    Adams-Bashforth of order 4 with its weights for equal steps, lower orders at the start. The steps are not equal, so
    that it is of order 2, with a small constant where their lengths change slowly.
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
    """The multistep method of Zhang and Chen 2023 (section 3.2, "tAB-DEIS"), in the clock sigma^(1/rho).

    The polynomial through the last slopes is integrated exactly. In sigma itself it swings wildly, as the first steps
    are thousands of times as long as the last; in sigma^(1/rho) those of `noise_levels` are equal. One evaluation a
    step, lower orders at the start.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: the particles, (N, ...).
        sigmas: noise levels.
        noise: not needed.
        order: slopes that the polynomial goes through.
        rho: of the clock; that of the noise levels is best.
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
    """Integral over sigma = u^rho, from u = start to end, of the polynomials that are 1 at one node and 0 at others."""
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
    """The family between the probability flow and the reversed film, exact for a given E[x_0 | x]; order 1.

    With noise of lambda sqrt(2D) and drift (1 + lambda^2) D grad ln p, a step from sigma to sigma' has the mean
    x_0 + (sigma' / sigma)^(1 + lambda^2) (x - x_0) and the variance sigma'^2 (1 - (sigma' / sigma)^(2 lambda^2)).
    Lambda 0 is Euler's method; 1 is the bridge from x to x_0, DDPM's ancestral step (Ho et al. 2020, arXiv 2006.11239,
    eq. 6 and 7). One evaluation a step.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: the particles, (N, ...).
        sigmas: falling, to 0.
        noise: draws standard normal numbers of the shape of x.
        amount: lambda.
    """
    for sigma, after in pairwise(sigmas):
        ratio = after / sigma
        x = torch.lerp(denoise(x, sigma), x, ratio ** (1 + amount**2))
        if amount > 0 and after > 0:
            x = x + after * math.sqrt(1 - ratio ** (2 * amount**2)) * _drawn(noise)
        yield x


def predictor_corrector(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise | None = None, amount: float = 0.16
) -> Iterator[Tensor]:
    """A bridge step, then one of Langevin dynamics at the new noise level; two evaluations a step, one in the last.

    Song et al. 2021, algorithm 2. The corrector moves by h grad ln p + sqrt(2h) xi, which leaves p as it is for small
    h; h = (amount sigma)^2 here, so that its noise is a share of the noise that is there.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: the particles, (N, ...).
        sigmas: falling, to 0.
        noise: draws standard normal numbers of the shape of x.
        amount: the share.
    """
    for sigma, after in pairwise(sigmas):
        (x,) = ancestral(denoise, x, (sigma, after), noise)
        if after > 0:
            step = (amount * after) ** 2
            score = (denoise(x, after) - x) / after**2
            x = x + step * score + math.sqrt(2 * step) * _drawn(noise)
        yield x


def _drawn(noise: Noise | None) -> Tensor:
    if noise is None:
        raise UserError("this solver needs noise; give it some, for instance a SampleNoise")
    return noise()


SOLVERS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": ipndm,
    "deis": deis,
    "ancestral": ancestral,
    "predictor_corrector": predictor_corrector,
}

#: Those that draw no random numbers, and so run in both directions.
DETERMINISTIC = ("euler", "heun", "dpmpp_2m", "ipndm", "deis")


@dataclass(frozen=True)
class Solution:
    """Where the film ended.

    Attributes:
        x: the particles at the last noise level, (N, ...), float64.
        evaluations: how often the denoiser was asked, for each particle.
        states: where they were at each noise level, (len(sigmas), N, ...), where that was asked for.
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
    **options: float,
) -> Solution:
    """Runs particles from the first noise level to the last.

    Args:
        denoise: E[x_0 | x] as a function of x, float64 (N, ...), and sigma.
        x: the particles at the first noise level, (N, ...).
        sigmas: noise levels, falling for the film backwards; rising ones take an image to its noise.
        solver: one of `SOLVERS`.
        noise: draws standard normal numbers of the shape of x, for the solvers that need them.
        trajectory: keep every state.
        **options: of the solver.
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
