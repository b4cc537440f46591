"""Editing images with a diffusion model: functions of any denoiser, like the solvers.

The common principle: noise removes the details of an image, and the reverse diffusion fills in plausible ones. Images
are (N, ...) throughout, in the range on which the denoiser was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.models.diffusion.solvers import Denoise, Noise, ancestral, solve, state_dtype
from zoo.models.generative import slerp


def condition(
    denoise: Denoise,
    x: Tensor,
    known: Tensor,
    project: Callable[[Tensor], Tensor],
    sigmas: Sequence[float],
    noise: Noise,
    resamples: int = 10,
) -> Tensor:
    """Draws images of which a part is known: RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1).

    At each noise level the known part is replaced by that of the known image with noise. Each step is repeated, with
    the noise added again, so that the unknown part adapts to the known one.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: initial noise of the first noise level, (N, ...).
        known: images, (N, ...).
        project: orthogonal projection, (N, ...) to (N, ...), onto the known part of an image.
        sigmas: noise levels, descending to 0.
        noise: function that draws standard normal noise of the shape of x.
        resamples: number of times that each step is repeated.

    Returns:
        Images (N, ...) whose known part equals that of `known`.
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
    """Redraws the pixels of an image that are in the mask.

    Args:
        denoise: see `condition`, as for the other arguments.
        x: initial noise, (N, ...).
        known: images, (N, ...).
        mask: true for pixels to redraw, broadcast against the images; the others are exact in the result.
        sigmas: noise levels.
        noise: function that draws noise.
        resamples: number of times that each step is repeated.
    """
    return condition(denoise, x, known, lambda x: torch.where(mask, 0, x), sigmas, noise, resamples)


def super_resolve(
    denoise: Denoise, x: Tensor, small: Tensor, sigmas: Sequence[float], noise: Noise, resamples: int = 10
) -> Tensor:
    """Draws images that equal the small ones when squares of their pixels are averaged.

    Args:
        denoise: see `condition`, as for the other arguments.
        x: initial noise, (N, C, H, W).
        small: images, (N, C, h, w), whose sides divide those of x by the same integer.
        sigmas: noise levels.
        noise: function that draws noise.
        resamples: number of times that each step is repeated.
    """
    factor = x.shape[-1] // small.shape[-1]
    if (small.shape[-2] * factor, small.shape[-1] * factor) != tuple(x.shape[-2:]):
        raise UserError(
            f"images of {tuple(small.shape[-2:])} pixels cannot be enlarged to {tuple(x.shape[-2:])} evenly"
        )
    known = enlarge(small, factor)
    return condition(denoise, x, known, lambda x: enlarge(F.avg_pool2d(x, factor), factor), sigmas, noise, resamples)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Repeats each pixel of (N, C, h, w) as a square of factor x factor pixels."""
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def vary(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, solver: str = "deis") -> Tensor:
    """Redraws details finer than the first noise level: SDEdit (Meng et al. 2022, arXiv 2108.01073, algorithm 1).

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: images, (N, ...).
        sigmas: noise levels, descending to 0; the first one is the strength.
        noise: function that draws standard normal noise of the shape of x.
        solver: name of the solver; see `zoo.models.diffusion.solvers`.
    """
    return solve(denoise, x + sigmas[0] * noise(), sigmas, solver, noise).x


def invert(denoise: Denoise, x: Tensor, sigmas: Sequence[float], solver: str = "deis") -> Tensor:
    """Noise that generates an image along the probability flow (Song et al. 2021, arXiv 2011.13456, section 4.3).

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        x: images, (N, ...), assumed to be at the last noise level above 0.
        sigmas: noise levels, descending; a final 0 is dropped, because the flow does not reach it.
        solver: name of a deterministic solver.

    Returns:
        Noise of the first noise level, (N, ...).
    """
    return solve(denoise, x, [sigma for sigma in sigmas if sigma > 0][::-1], solver).x


def interpolate(
    denoise: Denoise, first: Tensor, second: Tensor, steps: int, sigmas: Sequence[float], center: Tensor | float = 0.0
) -> Tensor:
    """Images along a great circle between the noise vectors that generate two images.

    Args:
        denoise: E[x_0 | x] as a function of x and sigma.
        first: first images, (N, ...).
        second: second images, (N, ...).
        steps: number of images, both ends included.
        sigmas: noise levels, descending.
        center: center of the noise, the mean of the data.

    Returns:
        (steps, N, ...).
    """
    start, end = (invert(denoise, x, sigmas) - center for x in (first, second))
    levels = [sigma for sigma in sigmas if sigma > 0]
    images = []
    for weight in torch.linspace(0, 1, steps).tolist():
        x = slerp(start.flatten(1), end.flatten(1), weight).view_as(start)
        images.append(solve(denoise, center + x, levels, "deis").x)
    return torch.stack(images)
