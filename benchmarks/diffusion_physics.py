"""The lecture's diffusion, forwards and backwards, on particles whose density is known at every time.

Particles start from a mixture of three Gaussians on a line, spread by dx = sqrt(2D) dw, and are brought back by the
exact force f' = 2 k_B T grad ln p with the noise of the way there. What comes back is compared with the mixture by the
Wasserstein-1 distance, beside its floor (two draws from the mixture), also for other factors than the right ones. Run
it as

    python benchmarks/diffusion_physics.py --out physics.png
"""

from __future__ import annotations

import argparse
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.datamodules.points import MIXTURES
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import save_png

MIXTURE = MIXTURES["gaussians"]
PROCESS = Process(diffusivity=1.0, temperature=1.0)
FORCE = IdealDenoiser(MIXTURE.centers.double(), weights=MIXTURE.weights, std=MIXTURE.std)
SIGMA_MAX, SIGMA_MIN, STEPS = 5.0, 0.01, 400

# What a step adds: (share of D grad ln p in the drift, times 2D; share of sqrt(2D) in the noise).
WAYS = {
    "2D grad ln p, full noise (the lecture's)": (1.0, 1.0),
    "D grad ln p, no noise (probability flow)": (0.5, 0.0),
    "5D grad ln p, twice the noise": (2.5, 2.0),
    "wrong: D grad ln p, full noise": (0.5, 1.0),
    "wrong: 2D grad ln p, no noise": (1.0, 0.0),
    "wrong: 4D grad ln p, full noise": (2.0, 1.0),
}


def levels() -> list[float]:
    """Noise levels in equal steps of their cube root, 400 of them: equal steps in time pass over the data at once."""
    high, low = SIGMA_MAX ** (1 / 3), SIGMA_MIN ** (1 / 3)
    return [(high + step / STEPS * (low - high)) ** 3 for step in range(STEPS + 1)]


def backwards(x: Tensor, drift: float, noise: float, generator: torch.Generator) -> Tensor:
    """All states on the way back, (steps + 1, N, 1): x + (2 D drift) grad ln p dt + noise sqrt(2D) dw."""
    share = drift / ((1 + noise**2) / 2)  # of what belongs to this much noise

    def score(x: Tensor, t: float) -> Tensor:
        return share * FORCE.score(x, PROCESS.sigma(t))

    states, times = [x], [PROCESS.time(sigma) for sigma in levels()]
    for start, end in pairwise(times):
        states.append(PROCESS.reverse(states[-1], score, (start, end), noise, generator))
    return torch.stack(states)


def forwards(x: Tensor, generator: torch.Generator) -> Tensor:
    """All states on the way there, (steps + 1, N, 1), at the same noise levels."""
    states, times = [x], [PROCESS.time(sigma) for sigma in reversed(levels())]
    for start, end in pairwise(times):
        states.append(PROCESS.diffuse(states[-1], end - start, generator))
    return torch.stack(states)


def distances(n: int, seeds: int) -> str:
    """Wasserstein-1 distance of what comes back, for each way, as a Markdown table."""
    results: dict[str, list[float]] = {name: [] for name in ("floor", *WAYS)}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        data, other = (MIXTURE.sample(n, generator)[0].double() for _ in range(2))
        results["floor"].append(wasserstein1(data, other).item())
        there = PROCESS.diffuse(data, PROCESS.time(SIGMA_MAX), generator)
        for name, (drift, noise) in WAYS.items():
            results[name].append(wasserstein1(backwards(there, drift, noise, generator)[-1], other).item())
    lines = ["| the way back | Wasserstein-1 distance from the data |", "| --- | --- |"]
    for name, values in results.items():
        lines.append(f"| {name} | {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |")
    return "\n".join(lines)


def figure(n: int = 40) -> Any:
    """Ways of particles there and back, and how many end where."""
    generator = torch.Generator().manual_seed(0)
    names = ["2D grad ln p, full noise (the lecture's)", "D grad ln p, no noise (probability flow)"]
    shown, panels = new_figure(3, size=3.6)
    there = forwards(MIXTURE.sample(20_000, generator)[0].double(), generator)
    clock = range(STEPS + 1)
    _ways(panels[0], clock, there[:, :n, 0], "forwards: dx = sqrt(2D) dw")
    grid = torch.linspace(-3.5, 3.5, 300, dtype=torch.float64).unsqueeze(1)
    for panel, name, title in zip(
        panels[1:],
        names,
        ("backwards: force 2 kT grad ln p, noise", "backwards: half the force, no noise"),
        strict=True,
    ):
        back = backwards(there[-1], *WAYS[name], generator)
        _ways(panel, clock, back[:, :n, 0], title)
        side = panel.inset_axes((0.78, 0, 0.22, 1), sharey=panel)
        side.hist(back[-1, :, 0].numpy(), bins=90, density=True, orientation="horizontal", color="tab:red", alpha=0.5)
        side.plot(MIXTURE.log_prob(grid).exp(), grid[:, 0], color="black", linewidth=1)
        side.axis("off")
    return render_figure(shown)


def _ways(ax: Any, clock: range, x: Tensor, title: str) -> None:
    ax.plot(clock, x.numpy(), linewidth=0.5, color="tab:blue", alpha=0.6)
    width = STEPS if title.startswith("forwards") else 1.3 * STEPS
    ax.set(title=title, xlabel="step of the clock sigma^(1/3)", ylabel="x", ylim=(-9, 9), xlim=(0, width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="physics.png")
    parser.add_argument("--n", type=int, default=20_000, help="particles")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    save_png(Path(arguments.out), figure())
    print(distances(arguments.n, arguments.seeds))


if __name__ == "__main__":
    main()
