"""Curves of logged metrics."""

from __future__ import annotations

import torch

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage


def plot_curves(metrics: dict[str, list[tuple[int, float]]]) -> RGBImage:
    """Plots metrics over training steps: one panel for each quantity, training and validation together.

    `x_floor` and `x_optimum` become dashed lines in the panel of `x`. A panel of one curve has its name as the title,
    one of several a legend.

    Args:
        metrics: points (step, value) by the name of the metric.
    """
    panels: dict[str, list[str]] = {}
    for name in sorted(metrics):
        quantity = name.split("/", 1)[-1].removesuffix("_floor").removesuffix("_optimum")
        panels.setdefault(quantity, []).append(name)
    figure, axes = new_figure(max(1, len(panels)), fast=True)
    for ax, (quantity, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            steps, values = zip(*metrics[name], strict=True)
            if name.endswith(("_floor", "_optimum")):
                ax.axhline(values[-1], linestyle="--", color="0.4", label=f"{name} {values[-1]:.3g}")
            else:
                ax.plot(steps, values, label=name, marker="." if len(steps) < 30 else None)
        finite = torch.tensor([value for name in names for _, value in metrics[name]])
        if finite.min() > 0 and finite.max() / finite.min() > 100:
            ax.set_yscale("log")
        else:
            ax.locator_params(nbins=6)
        ax.tick_params(labelsize="small")
        # At a fixed height, since matplotlib otherwise measures all text above the axes for it.
        ax.set_title(quantity if len(names) > 1 else names[0], y=1.0)
        ax.set_xlabel("step")
        if len(names) > 1:
            ax.legend(fontsize="small")
    return render_figure(figure)
