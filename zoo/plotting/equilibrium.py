"""Density and discriminator of a GAN on one-dimensional data, against the theoretical equilibrium."""

from __future__ import annotations

from torch import Tensor

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage


def plot_equilibrium(x: Tensor, density: Tensor, probability: Tensor, samples: Tensor) -> RGBImage:
    """Plots p_data with a histogram of the samples, and D(x) with its equilibrium value 1/2.

    Args:
        x: positions, ascending, (M,).
        density: p_data(x), (M,).
        probability: D(x), (M,); or (K, M), of each class.
        samples: generated points, (N,).
    """
    figure, (left, right) = new_figure(2, size=3.6)
    limits = (x.min().item(), x.max().item())
    left.hist(samples.numpy(), bins=120, density=True, color="tab:red", alpha=0.5, label="samples")
    left.plot(x, density, color="black", label="p_data")
    left.set(title="density", xlabel="x", xlim=limits)
    left.legend(fontsize="small")
    if probability.ndim == 1:
        right.plot(x, probability, color="tab:blue", label="D(x)")
    else:
        for k, of_class in enumerate(probability):
            right.plot(x, of_class, label=f"D(x), class {k}")
    right.axhline(0.5, color="black", linestyle="--", label="1/2")
    right.set(title="discriminator", xlabel="x", ylim=(0, 1), xlim=limits)
    right.legend(fontsize="small")
    return render_figure(figure)
