"""The lecture's diffusion, forward and reverse, for particles whose density is known at every time.

Particles start from a mixture of three Gaussians in one dimension, diffuse by dx = sqrt(2D) dw, and return under the
exact force f' = 2 k_B T grad ln p with the noise of the forward process. The Wasserstein-1 distance between the
returned particles and the mixture is compared with its floor (two draws from the mixture), also for other, wrong
factors of force and noise. Usage:

    python -m benchmarks.diffusion_physics --out physics.png
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.output import check_new, markdown_table, mean_std, new_parser, report
from zoo.datamodules.points import MIXTURES
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import save_png

MIXTURE = MIXTURES["gaussians"]
PROCESS = Process(diffusivity=1.0, temperature=1.0)
DENOISER = IdealDenoiser(MIXTURE.centers.double(), weights=MIXTURE.weights, std=MIXTURE.std)
SIGMA_MAX, SIGMA_MIN = 5.0, 0.01

LECTURE = "2D grad ln p, full noise (the lecture's)"
PROBABILITY_FLOW = "D grad ln p, no noise (probability flow)"
# Factors of 2D grad ln p in the drift and of sqrt(2D) in the noise.
VARIANTS = {
    LECTURE: (1.0, 1.0),
    PROBABILITY_FLOW: (0.5, 0.0),
    "5D grad ln p, twice the noise": (2.5, 2.0),
    "wrong: D grad ln p, full noise": (0.5, 1.0),
    "wrong: 2D grad ln p, no noise": (1.0, 0.0),
    "wrong: 4D grad ln p, full noise": (2.0, 1.0),
}


def times(steps: int) -> list[float]:
    """Times of the reverse process, descending.

    The cube root of sigma falls in equal steps: equal steps in time would cross the scale of the data in one.
    """
    high, low = SIGMA_MAX ** (1 / 3), SIGMA_MIN ** (1 / 3)
    return [PROCESS.time((high + step / steps * (low - high)) ** 3) for step in range(steps + 1)]


def reverse(x: Tensor, steps: int, drift: float, noise: float, generator: torch.Generator) -> Tensor:
    """States of the reverse process, (steps + 1, N, 1).

    Args:
        x: particles at the highest noise level, (N, 1).
        steps: number of time steps.
        drift: factor of 2D grad ln p in the drift.
        noise: factor of sqrt(2D) in the noise.
        generator: random number generator.
    """
    correct = (1 + noise**2) / 2  # drift that belongs to this noise

    def score(x: Tensor, t: float) -> Tensor:
        return drift / correct * DENOISER.score(x, PROCESS.sigma(t))

    states = [x]
    for start, end in pairwise(times(steps)):
        states.append(PROCESS.reverse(states[-1], score, (start, end), noise, generator))
    return torch.stack(states)


def forward(x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """States of the forward process, (steps + 1, N, 1), at the same noise levels as `reverse`."""
    states = [x]
    for start, end in pairwise(reversed(times(steps))):
        states.append(PROCESS.diffuse(states[-1], end - start, generator))
    return torch.stack(states)


def distances(n: int, steps: int, seeds: int) -> str:
    """Wasserstein-1 distance of the returned particles from the mixture for each variant, as a table."""
    results: dict[str, list[float]] = {name: [] for name in ("floor", *VARIANTS)}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        data, other = (MIXTURE.sample(n, generator)[0].double() for _ in range(2))
        results["floor"].append(wasserstein1(data, other).item())
        diffused = PROCESS.diffuse(data, PROCESS.time(SIGMA_MAX), generator)
        for name, (drift, noise) in VARIANTS.items():
            returned = reverse(diffused, steps, drift, noise, generator)[-1]
            results[name].append(wasserstein1(returned, other).item())
        for name, values in results.items():
            report(name, seed, w1=values[-1])
    rows = [[name, mean_std(values, 4)] for name, values in results.items()]
    return markdown_table(["reverse process", "Wasserstein-1 distance"], rows)


def plot(n: int, steps: int, shown: int = 40) -> Any:
    """Trajectories of the first `shown` of `n` particles, forward and reverse, and the density of all."""
    generator = torch.Generator().manual_seed(0)
    figure, panels = new_figure(3, size=3.6)
    forwards = forward(MIXTURE.sample(n, generator)[0].double(), steps, generator)
    _plot_trajectories(panels[0], forwards[:, :shown, 0], "forward: dx = sqrt(2D) dw", steps)
    grid = torch.linspace(-3.5, 3.5, 300, dtype=torch.float64).unsqueeze(1)
    titles = {LECTURE: "reverse: force 2 kT grad ln p, noise", PROBABILITY_FLOW: "reverse: half the force, no noise"}
    for panel, (name, title) in zip(panels[1:], titles.items(), strict=True):
        states = reverse(forwards[-1], steps, *VARIANTS[name], generator)
        _plot_trajectories(panel, states[:, :shown, 0], title, 1.3 * steps)
        side = panel.inset_axes((0.78, 0, 0.22, 1), sharey=panel)
        side.hist(states[-1, :, 0].numpy(), bins=90, density=True, orientation="horizontal", color="tab:red", alpha=0.5)
        side.plot(MIXTURE.log_prob(grid).exp(), grid[:, 0], color="black", linewidth=1)
        side.axis("off")
    return render_figure(figure)


def _plot_trajectories(ax: Any, x: Tensor, title: str, width: float) -> None:
    ax.plot(range(len(x)), x.numpy(), linewidth=0.5, color="tab:blue", alpha=0.6)
    ax.set(title=title, xlabel="step, equal in sigma^(1/3)", ylabel="x", ylim=(-9, 9), xlim=(0, width))


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("physics.png"), help=".png file for the figure")
    parser.add_argument("--n", type=int, default=20_000, help="number of particles")
    parser.add_argument("--steps", type=int, default=400, help="time steps of the reverse process")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds")
    options = parser.parse_args(args)
    check_new(parser, options.out)
    save_png(options.out, plot(options.n, options.steps))
    print(distances(options.n, options.steps, options.seeds))


if __name__ == "__main__":
    main()
