"""The film backwards: diffusion of a known distribution, and its reversal under the exact force.

Free particles spread by sigma_t^2 = 2Dt and return under the force f' = -f + 2 k_B T grad ln p (f = 0 here), which is
known in closed form for mixtures of Gaussians. Start and force decide what they return to: a start that is too narrow
biases the result, and the exact force of training samples leads back to these samples. Units: D = k_B T = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.datamodules.points import MIXTURES, sample_moons
from zoo.errors import check_at_least, check_at_most, check_seed
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process
from zoo.models.diffusion.solvers import karras_sigmas, reverse_process
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage

PROCESS = Process(diffusivity=1.0, temperature=1.0)
MIXTURE = MIXTURES["gaussians"]
MEAN = MIXTURE.weights @ MIXTURE.centers[:, 0]
#: Centers of the mixture in one dimension, shifted so that its mean is 0.
CENTERS = (MIXTURE.centers - MEAN).double()
SPREAD = (MIXTURE.weights @ CENTERS[:, 0].float() ** 2 + MIXTURE.std**2).sqrt().item()
#: Mixture in two dimensions whose force field is drawn.
TRIANGLE = torch.tensor([[-1.2, -0.7], [1.2, -0.7], [0.0, 1.3]], dtype=torch.double)
SIGMA_MIN = 0.01


def mixture(offset: float = 0.0) -> IdealDenoiser:
    """Density, force and denoiser of the mixture in one dimension, with the mean `offset`."""
    return IdealDenoiser(CENTERS + offset, weights=MIXTURE.weights, std=MIXTURE.std)


def draw_data(n: int, generator: torch.Generator) -> Tensor:
    """Draws from the mixture with mean 0, float64 (n, 1)."""
    return MIXTURE.sample(n, generator)[0].double() - MEAN


def spread(x: Tensor, times: Sequence[float], generator: torch.Generator) -> list[float]:
    """Variance of a coordinate of the diffused particles at each time, averaged over the coordinates of `x` (N, D)."""
    return [PROCESS.diffuse(x, t, generator).var(0).mean().item() for t in times]


def reverse(denoiser: IdealDenoiser, x: Tensor, sigma: float, steps: int, generator: torch.Generator) -> Tensor:
    """States of the reverse process, (steps + 1, N, D).

    Args:
        denoiser: exact denoiser of the data.
        x: particles at the first noise level, (N, D).
        sigma: first noise level, sigma_T = sqrt(2DT).
        steps: time steps.
        generator: random number generator of the noise.
    """
    sigmas = karras_sigmas(steps, min(SIGMA_MIN, sigma / 2), sigma, rho=3.0)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return torch.stack([x, *reverse_process(denoiser.denoise, x, sigmas, noise, PROCESS)])


def sample(denoiser: IdealDenoiser, n: int, sigma: float, steps: int, generator: torch.Generator) -> Tensor:
    """Samples (n, D): the reverse process from N(0, sigma^2), as if diffused data had no trace of the data left."""
    x = sigma * torch.randn(n, denoiser.data.shape[1], generator=generator, dtype=torch.double)
    return reverse(denoiser, x, sigma, steps, generator)[-1]


def error_of_start(sigma: float, n: int, steps: int, offset: float, seed: int = 0) -> float:
    """Wasserstein-1 distance from the data, if the mean `offset` of the data is not known to a start about 0."""
    generator = torch.Generator().manual_seed(seed)
    data = draw_data(n, generator) + offset
    return wasserstein1(sample(mixture(offset), n, sigma, steps, generator), data).item()


def gaussian_return(spread: float, sigma: float, offset: float = 0.0) -> tuple[float, float]:
    """Error of the mean, and variance, of what N(0, sigma^2) returns to under the force of N(offset, spread^2) data.

    With v = spread^2 + 2Dt, deviations of the mean shrink in proportion to v, those of the variance to v^2.
    """
    shrink = spread**2 / (spread**2 + sigma**2)
    return offset * shrink, spread**2 - spread**2 * shrink**2


def memorized(training: Tensor, n: int, sigma: float, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples (n, D) under the exact force of the training samples (M, D), and their distances (n,) from them."""
    generator = torch.Generator().manual_seed(seed)
    samples = sample(IdealDenoiser(training), n, sigma, steps, generator)
    return samples, torch.cdist(samples, training).amin(1)


def draw(
    n: int = 10_000, steps: int = 300, sigma: float = 5.0, offset: float = 3.0, training: int = 25, seed: int = 0
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        n: number of particles.
        steps: time steps of the reverse process.
        sigma: noise level sigma_T at which the film is reversed.
        offset: mean of the data in the panel on the start of the reverse process.
        training: number of training samples in the panel on memorization.
        seed: random seed.
    """
    check_at_least(2, n=n, steps=steps)
    check_at_least(1, training=training)
    check_at_least(0.1, sigma=sigma)
    check_at_least(-100, offset=offset)
    check_at_most(100, sigma=sigma, offset=offset)
    check_seed(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    figure, axes = new_figure(6, size=3.4, columns=2)
    _plot_densities(axes[0], n, generator)
    _plot_spread(axes[1], n, generator)
    _plot_force(axes[2])
    _plot_return(axes[3], n, steps, sigma, generator)
    _plot_start(axes[4], n, steps, offset, seed)
    _plot_memorized(axes[5], training, steps, seed)
    return render_figure(figure)


def _plot_densities(ax: Any, n: int, generator: torch.Generator) -> None:
    data, grid = draw_data(n, generator), torch.linspace(-6, 6, 300, dtype=torch.double).unsqueeze(1)
    for t, color in zip((0.0, 0.1, 0.5, 2.0), PALETTE, strict=False):
        diffused = PROCESS.diffuse(data, t, generator)
        ax.hist(diffused[:, 0].numpy(), bins=100, range=(-6, 6), density=True, color=color, alpha=0.35)
        density = mixture().log_prob(grid, PROCESS.sigma(t)).exp()
        ax.plot(grid[:, 0], density, color=color, label=f"t = {t:g}")
    ax.set_title("forward: histograms and exact p(x, t)", fontsize="medium")
    ax.set(xlabel="x", xlim=(-6, 6))
    ax.legend(fontsize="small")


def _plot_spread(ax: Any, n: int, generator: torch.Generator) -> None:
    times = [0.25 * k for k in range(9)]
    clouds = {"1 dimension": draw_data(n, generator), "2 dimensions": sample_moons(n, generator)[0].double()}
    for (name, x), color, marker in zip(clouds.items(), PALETTE, "os", strict=False):
        law = [x.var(0).mean().item() + PROCESS.std(t) ** 2 for t in times]
        ax.plot(times, spread(x, times, generator), marker, color=color, label=f"data of {name}")
        ax.plot(times, law, color=color, linewidth=1)
    ax.plot(times, [PROCESS.std(t) ** 2 for t in times], "k:", label="2Dt alone")
    ax.set_title("variance per coordinate: data + 2Dt", fontsize="medium")
    ax.set(xlabel="t", ylabel="variance")
    ax.legend(fontsize="small")


def _plot_force(ax: Any, sigma: float = 0.5) -> None:
    denoiser = IdealDenoiser(TRIANGLE, std=0.15)
    fine = torch.linspace(-3, 3, 120, dtype=torch.double)
    points = torch.stack(torch.meshgrid(fine, fine, indexing="xy"), dim=-1)
    density = denoiser.log_prob(points.view(-1, 2), sigma).exp().view(120, 120)
    ax.contourf(fine, fine, density, levels=8, cmap="Blues", alpha=0.8)
    coarse = torch.linspace(-2.75, 2.75, 15, dtype=torch.double)
    places = torch.stack(torch.meshgrid(coarse, coarse, indexing="xy"), dim=-1).view(-1, 2)
    score = denoiser.score(places, sigma)
    force = PROCESS.reverse_force(places, score)
    ax.quiver(*places.T, *force.T, color="black", angles="xy", width=0.004)
    ax.set_title(f"force f' = 2kT grad ln p at sigma = {sigma:g}", fontsize="medium")
    ax.set(xlabel="x", ylabel="y")
    ax.set_box_aspect(0.75)
    ax.set(xlim=(-3, 3), ylim=(-2.25, 2.25))


def _plot_return(ax: Any, n: int, steps: int, sigma: float, generator: torch.Generator, shown: int = 40) -> None:
    x = PROCESS.diffuse(draw_data(n, generator), PROCESS.time(sigma), generator)
    states = reverse(mixture(), x, sigma, steps, generator)[..., 0]
    reach = max(4.0, 2.2 * sigma)
    ax.plot(states[:, :shown].numpy(), linewidth=0.5, color=PALETTE[0], alpha=0.7)
    ax.set_title(f"backwards from sigma = {sigma:g}", fontsize="medium")
    ax.set(xlabel="step", ylabel="x", xlim=(0, 1.3 * steps), ylim=(-reach, reach))
    side = ax.inset_axes((0.78, 0, 0.22, 1), sharey=ax)
    grid = torch.linspace(-4, 4, 300, dtype=torch.double).unsqueeze(1)
    side.hist(states[-1].numpy(), bins=90, density=True, orientation="horizontal", color=PALETTE[1], alpha=0.5)
    side.plot(mixture().log_prob(grid, 0.0).exp(), grid[:, 0], color="black", linewidth=1)
    side.axis("off")


def _plot_start(ax: Any, n: int, steps: int, offset: float, seed: int) -> None:
    sigmas = [0.3 * 2**k for k in range(8)]
    for shift, color, marker in ((0.0, PALETTE[0], "o"), (offset, PALETTE[1], "s")):
        errors = [error_of_start(sigma, n, steps, shift, seed) for sigma in sigmas]
        ax.plot(sigmas, errors, marker=marker, color=color, label=f"start about 0, mean of the data {shift:g}")
    if offset:
        law = [abs(gaussian_return(SPREAD, sigma, offset)[0]) for sigma in sigmas]
        ax.plot(sigmas, law, "--", color=PALETTE[1], linewidth=1, label="error of the mean for one Gaussian")
    first, second = (draw_data(n, torch.Generator().manual_seed(seed + k)) for k in (1, 2))
    ax.axhline(wasserstein1(first, second).item(), color="black", linestyle=":", label="two draws of the data")
    ax.axvline(SPREAD, color="0.6", linewidth=1)
    ax.annotate(" spread of the data", (SPREAD, 0.02), xycoords=("data", "axes fraction"), fontsize="small")
    ax.set(xscale="log", yscale="log", xlabel="sigma_T at the start", ylabel="Wasserstein-1 distance")
    ax.set_title("a start that is too narrow", fontsize="medium")
    ax.legend(fontsize="x-small")


def _plot_memorized(ax: Any, training: int, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data, others = (sample_moons(count, generator)[0].double() for count in (training, 2000))
    samples, distance = memorized(data, 500, 5.0, steps, seed)
    ax.scatter(*others.T, s=3, color="0.8", label="distribution of the data")
    ax.scatter(*data.T, s=45, facecolors="none", edgecolors=PALETTE[0], label=f"{training} training samples")
    ax.scatter(*samples.T, s=5, color=PALETTE[1], label=f"500 samples, at most {distance.max():.0e} away")
    ax.set_title("the exact force of training samples", fontsize="medium")
    ax.set(xlabel="x", ylabel="y", ylim=(-1.3, 1.6))
    ax.legend(fontsize="x-small", loc="upper center", ncols=2)
