"""Diffusion as physics: Brownian particles under a force, and the same film run backwards.

An overdamped particle in a fluid of temperature T moves by dx = (D / k_B T) f dt + sqrt(2D) dw: the mobility D / k_B T
is Einstein's relation. Without an external force each coordinate spreads by sigma_t^2 = 2Dt. Run backwards, the same
film shows particles under the force f' = -f + 2 k_B T grad ln p (the lecture's; Anderson 1982, "Reverse-time diffusion
equation models"): its flux is the reverse of the flux forwards at every point and at every time.

What a network has to know of it is the denoiser E[x_0 | x_t], from which score and force follow. The time t, D and
k_B T are the clock and the units; the noise-to-signal ratio sigma is all that the denoiser depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from zoo.errors import UserError, check_at_least

Score = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Process:
    """Brownian motion, in the harmonic force f = -stiffness x where there is one.

    Free (stiffness 0) it is the lecture's process, also called variance-exploding. With a spring it is the
    Ornstein-Uhlenbeck process, also called variance-preserving: it forgets where it began and ends in the Boltzmann
    distribution N(0, k_B T / stiffness). All quantities are per coordinate; times are plain numbers.

    Args:
        diffusivity: D, in length^2 / time.
        temperature: k_B T, in units of energy.
        stiffness: of the spring, in energy / length^2.
    """

    diffusivity: float = 1.0
    temperature: float = 1.0
    stiffness: float = 0.0

    def __post_init__(self) -> None:
        for name in ("diffusivity", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        check_at_least(0, stiffness=self.stiffness)

    @property
    def mobility(self) -> float:
        """Velocity per force, D / k_B T (Einstein 1905)."""
        return self.diffusivity / self.temperature

    def external_force(self, x: Tensor) -> Tensor:
        """f(x) = -stiffness x, of the shape of `x`."""
        return -self.stiffness * x

    # Forwards: x_t = scale(t) x_0 + std(t) N(0, 1)

    def scale(self, t: float) -> float:
        """What is left of x_0 in the mean of x_t: 1 for the free particle."""
        return math.exp(-self.mobility * self.stiffness * t)

    def std(self, t: float) -> float:
        """Standard deviation of x_t given x_0: sqrt(2Dt) for the free particle."""
        if self.stiffness == 0:
            return math.sqrt(2 * self.diffusivity * t)
        relaxed = -math.expm1(-2 * self.mobility * self.stiffness * t)
        return math.sqrt(self.temperature / self.stiffness * relaxed)

    def sigma(self, t: float) -> float:
        """The noise-to-signal ratio std(t) / scale(t), by which the denoiser tells the time."""
        return self.std(t) / self.scale(t)

    def time(self, sigma: float) -> float:
        """The time at which the noise-to-signal ratio is `sigma`: sigma^2 / 2D for the free particle."""
        if self.stiffness == 0:
            return sigma**2 / (2 * self.diffusivity)
        return math.log1p(sigma**2 * self.stiffness / self.temperature) / (2 * self.mobility * self.stiffness)

    def diffuse(self, x0: Tensor, t: float, generator: torch.Generator | None = None) -> Tensor:
        """Draws x_t for each x_0, exactly and in one step; of the shape of `x0`."""
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return self.scale(t) * x0 + self.std(t) * noise

    # What follows from the score, grad ln p_t(x)

    def score(self, x: Tensor, denoised: Tensor, t: float) -> Tensor:
        """grad ln p_t(x), by Tweedie's formula, from the denoiser's E[x_0 | x_t = x]; of the shape of `x`."""
        return (self.scale(t) * denoised - x) / self.std(t) ** 2

    def denoised(self, x: Tensor, score: Tensor, t: float) -> Tensor:
        """E[x_0 | x_t = x] from grad ln p_t(x): the inverse of `score`."""
        return (x + self.std(t) ** 2 * score) / self.scale(t)

    def reverse_force(self, x: Tensor, score: Tensor, noise: float = 1.0) -> Tensor:
        """The force that runs the film backwards, f' = -f + (1 + noise^2) k_B T grad ln p.

        With as much noise as forwards (noise 1) it is the lecture's -f + 2 k_B T grad ln p; without any (noise 0) half
        of the extra force is left, and the particles follow the probability flow.
        """
        return -self.external_force(x) + (1 + noise**2) * self.temperature * score

    def drift(self, force: Tensor) -> Tensor:
        """Mean velocity under a force, (D / k_B T) force."""
        return self.mobility * force

    def flux(self, density: Tensor, force: Tensor, score: Tensor) -> Tensor:
        """Probability current j = p (D / k_B T) force - D grad p.

        Args:
            density: p(x), broadcast against the others.
            force: at x.
            score: grad ln p(x), of the shape of `force`.
        """
        return density * (self.drift(force) - self.diffusivity * score)

    def reverse(
        self,
        x: Tensor,
        score: Score,
        times: Iterable[float],
        noise: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Runs the film backwards, by the Euler-Maruyama method in physical time.

        It is the lecture's equation of motion as it stands, for what can be seen in it; `zoo.diffusion.samplers` get
        as far with a fraction of the steps.

        Args:
            x: where the particles are at the first of the times, (N, ...).
            score: grad ln p_t(x) as a function of x and t.
            times: falling.
            noise: lambda; the noise is lambda sqrt(2D).
            generator: random numbers.

        Returns:
            Where they are at the last of the times, (N, ...).
        """
        for t, earlier in pairwise(times):
            step = t - earlier
            xi = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            velocity = self.drift(self.reverse_force(x, score(x, t), noise))
            x = x + step * velocity + noise * math.sqrt(2 * self.diffusivity * step) * xi
        return x
