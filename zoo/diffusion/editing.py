"""Editing pictures by the force that draws them: functions of any denoiser, like the solvers.

What all have in common: noise takes from a picture what is finer than it, and the film backwards puts something
plausible in its place. Pictures are (N, ...) throughout, and in the range that the denoiser was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.diffusion.samplers import Denoise, Noise, ancestral, solve, state_dtype
from zoo.errors import UserError
from zoo.generative import slerp


def condition(
    denoise: Denoise,
    x: Tensor,
    known: Tensor,
    project: Callable[[Tensor], Tensor],
    sigmas: Sequence[float],
    noise: Noise,
    resamples: int = 10,
) -> Tensor:
    """Draws pictures of which a part is known: RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1).

    At each noise level the known part is that of the known picture with as much noise. Going a step back and forth
    again lets the rest take notice of it; without that, the two do not fit each other.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: noise to start from, (N, ...), of the first noise level.
        known: pictures, (N, ...).
        project: an orthogonal projection, (N, ...) to the same: what of a picture is known.
        sigmas: noise levels, falling to 0.
        noise: draws standard normal numbers of the shape of x.
        resamples: times that each step is taken.

    Returns:
        (N, ...), whose known part is that of the known picture.
    """
    x = x.to(state_dtype(x.device))
    known = known.to(x)
    for sigma, after in pairwise(sigmas):
        for repeat in range(resamples if after > 0 else 1):
            if repeat > 0:
                x = x + math.sqrt(sigma**2 - after**2) * noise()
            (x,) = ancestral(lambda x, sigma: denoise(x, sigma).to(x), x, (sigma, after), noise)
            x = project(known + after * noise() if after > 0 else known) + (x - project(x))
    return x


def inpaint(
    denoise: Denoise, x: Tensor, known: Tensor, mask: Tensor, sigmas: Sequence[float], noise: Noise, resamples: int = 10
) -> Tensor:
    """Fills in what the mask leaves out.

    Args:
        denoise: as for `condition`, like the other arguments.
        x: noise.
        known: pictures, (N, ...).
        mask: true where their pixels are known, broadcast against them; these are in the result exactly as they were.
        sigmas: noise levels.
        noise: draws noise.
        resamples: times that each step is taken.
    """
    return condition(denoise, x, known, lambda x: torch.where(mask, x, 0), sigmas, noise, resamples)


def super_resolve(
    denoise: Denoise, x: Tensor, small: Tensor, sigmas: Sequence[float], noise: Noise, resamples: int = 10
) -> Tensor:
    """Draws pictures that are the small ones when squares of their pixels are averaged.

    Args:
        denoise: as for `condition`, like the other arguments.
        x: noise, (N, C, H, W).
        small: pictures, (N, C, h, w), whose sides divide those of x by the same whole number.
        sigmas: noise levels.
        noise: draws noise.
        resamples: times that each step is taken.
    """
    factor = x.shape[-1] // small.shape[-1]
    if (small.shape[-2] * factor, small.shape[-1] * factor) != tuple(x.shape[-2:]):
        raise UserError(f"pictures of {tuple(small.shape[-2:])} pixels do not grow to {tuple(x.shape[-2:])} evenly")
    known = enlarge(small, factor)
    return condition(denoise, x, known, lambda x: enlarge(F.avg_pool2d(x, factor), factor), sigmas, noise, resamples)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Each pixel of (N, C, h, w) as a square of factor x factor of them."""
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def vary(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, solver: str = "deis") -> Tensor:
    """Redraws what is finer than the first noise level: SDEdit (Meng et al. 2022, arXiv 2108.01073, algorithm 1).

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: pictures, (N, ...).
        sigmas: noise levels, falling to 0; the first one is the strength.
        noise: draws standard normal numbers of the shape of x.
        solver: see `zoo.diffusion.samplers`.
    """
    return solve(denoise, x + sigmas[0] * noise(), sigmas, solver, noise).x


def invert(denoise: Denoise, x: Tensor, sigmas: Sequence[float], solver: str = "deis") -> Tensor:
    """The noise that a picture comes from by the probability flow (Song et al. 2021, arXiv 2011.13456, section 4.3).

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: pictures, (N, ...), taken to be at the last noise level above 0.
        sigmas: noise levels, falling; a 0 at the end is left out, since the flow does not reach it.
        solver: one that draws no random numbers.

    Returns:
        (N, ...), of the first noise level.
    """
    return solve(denoise, x, [sigma for sigma in sigmas if sigma > 0][::-1], solver).x


def interpolate(
    denoise: Denoise, first: Tensor, second: Tensor, steps: int, sigmas: Sequence[float], center: Tensor | float = 0.0
) -> Tensor:
    """Pictures on the way from one to another, on a great circle between the noises that they come from.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        first: pictures, (N, ...).
        second: others, (N, ...).
        steps: pictures on the way, both ends included.
        sigmas: noise levels, falling.
        center: of the noise, the mean of the data.

    Returns:
        (steps, N, ...).
    """
    start, end = (invert(denoise, x, sigmas) - center for x in (first, second))
    levels = [sigma for sigma in sigmas if sigma > 0]
    ways = []
    for weight in torch.linspace(0, 1, steps).tolist():
        x = slerp(start.flatten(1), end.flatten(1), weight).view_as(start)
        ways.append(solve(denoise, center + x, levels, "deis").x)
    return torch.stack(ways)
