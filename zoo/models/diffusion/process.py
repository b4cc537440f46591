"""Diffusion as physics: Brownian motion under a force, and its time reversal.

An overdamped particle in a fluid of temperature T moves by dx = (D / k_B T) f dt + sqrt(2D) dw: the mobility D / k_B T
is Einstein's relation. Without an external force the variance of each coordinate grows by sigma_t^2 = 2Dt. The
time-reversed motion is that of particles under the force f' = -f + 2 k_B T grad ln p (lecture; Anderson 1982,
"Reverse-time diffusion equation models"), whose flux is the reverse of the forward flux at every point and time.

A network only has to learn the denoiser E[x_0 | x_t], from which score and force follow. The time t, D and k_B T set
clock and units; the denoiser depends on the noise-to-signal ratio sigma alone.
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
    """Brownian motion, free or under a harmonic force f = -stiffness x.

    Free (stiffness 0) it is the lecture's process, also called variance-exploding. With a harmonic force it is the
    Ornstein-Uhlenbeck process, also called variance-preserving, whose stationary distribution is Boltzmann's,
    N(0, k_B T / stiffness). All quantities are per coordinate.

    Args:
        diffusivity: diffusion coefficient D, in length^2 / time.
        temperature: thermal energy k_B T, in units of energy.
        stiffness: spring constant, in energy / length^2.
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
        """Factor of x_0 in the mean of x_t: 1 for the free particle."""
        return math.exp(-self.mobility * self.stiffness * t)

    def std(self, t: float) -> float:
        """Standard deviation of x_t given x_0: sqrt(2Dt) for the free particle."""
        if self.stiffness == 0:
            return math.sqrt(2 * self.diffusivity * t)
        relaxed = -math.expm1(-2 * self.mobility * self.stiffness * t)
        return math.sqrt(self.temperature / self.stiffness * relaxed)

    def sigma(self, t: float) -> float:
        """Noise-to-signal ratio std(t) / scale(t), the denoiser's noise level."""
        return self.std(t) / self.scale(t)

    def time(self, sigma: float) -> float:
        """Time at which the noise-to-signal ratio is `sigma`: sigma^2 / 2D for the free particle."""
        if self.stiffness == 0:
            return sigma**2 / (2 * self.diffusivity)
        return math.log1p(sigma**2 * self.stiffness / self.temperature) / (2 * self.mobility * self.stiffness)

    def diffuse(self, x0: Tensor, t: float, generator: torch.Generator | None = None) -> Tensor:
        """Draws x_t for each x_0, exactly and in one step; shape of `x0`."""
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return self.scale(t) * x0 + self.std(t) * noise

    # Score, grad ln p_t(x), and force

    def score(self, x: Tensor, denoised: Tensor, t: float) -> Tensor:
        """grad ln p_t(x), by Tweedie's formula, from the denoiser's E[x_0 | x_t = x]; shape of `x`."""
        return (self.scale(t) * denoised - x) / self.std(t) ** 2

    def denoised(self, x: Tensor, score: Tensor, t: float) -> Tensor:
        """E[x_0 | x_t = x] from grad ln p_t(x): the inverse of `score`."""
        return (x + self.std(t) ** 2 * score) / self.scale(t)

    def reverse_force(self, x: Tensor, score: Tensor, noise: float = 1.0) -> Tensor:
        """Force of the reverse process, f' = -f + (1 + noise^2) k_B T grad ln p.

        With the noise of the forward process (noise 1) it is the lecture's -f + 2 k_B T grad ln p; without noise (noise
        0) half of the additional force remains, and the particles follow the probability flow.
        """
        return -self.external_force(x) + (1 + noise**2) * self.temperature * score

    def drift(self, force: Tensor) -> Tensor:
        """Mean velocity under a force, (D / k_B T) force."""
        return self.mobility * force

    def flux(self, density: Tensor, force: Tensor, score: Tensor) -> Tensor:
        """Probability current j = p (D / k_B T) force - D grad p.

        Args:
            density: p(x), broadcast against the others.
            force: force at x.
            score: grad ln p(x), shape of `force`.
        """
        return density * (self.drift(force) - self.diffusivity * score)

    def reverse(
        self,
        x: Tensor,
        score: Score,
        times: Iterable[float],
        noise: float = 1.0,
        generator: torch.Generator | None = None,
        draw: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Integrates the reverse process by the Euler-Maruyama method in physical time.

        This is the lecture's equation of motion, for teaching: the solver `reverse_process` of
        `zoo.models.diffusion.solvers`, of which the others need a fraction of the steps.

        Args:
            x: particles at the first time, (N, ...).
            score: grad ln p_t(x) as a function of x and t.
            times: times, descending.
            noise: amplitude lambda of the noise lambda sqrt(2D).
            generator: random number generator.
            draw: function that draws standard normal noise of the shape of x, instead of a generator.

        Returns:
            Particles at the last time, (N, ...).
        """
        for t, earlier in pairwise(times):
            step = t - earlier
            velocity = self.drift(self.reverse_force(x, score(x, t), noise))
            x = x + step * velocity
            if noise > 0:
                xi = draw() if draw else torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = x + noise * math.sqrt(2 * self.diffusivity * step) * xi
        return x
