"""Maps of attention weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage


def plot_attention(maps: dict[str, Tensor], queries: Sequence[str], keys: Sequence[str]) -> RGBImage:
    """Plots attention weights: one layer in each row, one head in each panel.

    Args:
        maps: weights by the name of the layer, (H, T, S); each row sums to 1.
        queries: labels of the T positions that attend, top to bottom.
        keys: labels of the S positions attended to, left to right.
    """
    heads = len(next(iter(maps.values())))
    figure, axes = new_figure(heads * len(maps), size=2.2, columns=heads)
    panels = ((name, head, weights) for name, layer in maps.items() for head, weights in enumerate(layer))
    for ax, (name, head, weights) in zip(axes, panels, strict=True):
        ax.imshow(weights.detach().cpu().float().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(keys)), keys, fontsize=7)
        ax.set_yticks(range(len(queries)), queries, fontsize=7)
        ax.set_title(f"{name}, head {head + 1}", fontsize=7)
    return render_figure(figure)
