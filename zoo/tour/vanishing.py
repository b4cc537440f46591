"""The gradient vanishes: gradients and activations by depth, by activation function, initialization, norm and shortcut.

The gradient of a hidden layer is that of the next one times W^T and the slopes of the activation function, one such
factor for each layer (Hochreiter 1991; Glorot and Bengio 2010). For weights of variance gain^2 / n the factor of a wide
ReLU layer is gain / sqrt(2) (He et al. 2015, arXiv 1502.01852, section 2.2), that of a sigmoid at most gain / 4.
`benchmarks/vanishing_gradient.py` measures the same on convolutional networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import check_at_least, check_at_most, check_seed
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage
from zoo.tour.optimizers import Batch, digits

Shortcut = Literal["none", "post", "pre"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "ReLU": torch.relu}
#: Gains of He's initialization, for ReLU; of Glorot's, for layers of equal width; and of torch's default.
HE, GLOROT, DEFAULT = math.sqrt(2), 1.0, math.sqrt(1 / 3)


@dataclass(frozen=True)
class Design:
    """Design of a deep network.

    Attributes:
        activation: name of the activation function.
        gain: standard deviation of the weights, times the root of the number of inputs.
        batch_norm: batch normalization after each layer, before the activation function.
        shortcut: "post" for ReLU(F + x), as in He et al. 2015 (arXiv 1512.03385); "pre" for x + F with the activations
            inside of F (He et al. 2016, arXiv 1603.05027); in both F has two layers.
    """

    activation: str = "ReLU"
    gain: float = HE
    batch_norm: bool = False
    shortcut: Shortcut = "none"


class Block(nn.Module):
    """Two layers of equal width, with a shortcut around them or without one."""

    def __init__(self, width: int, design: Design) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[design.activation]
        self.shortcut = design.shortcut
        linears = [nn.Linear(width, width) for _ in range(2)]
        self.linears = nn.ModuleList(linears)
        for linear in linears:
            nn.init.normal_(linear.weight, std=design.gain / math.sqrt(width))
            nn.init.zeros_(linear.bias)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if design.batch_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, hidden: list[Tensor]) -> Tensor:
        """x (N, width) to (N, width); appends what enters each activation function, (N, width), to `hidden`."""
        h = x
        for index, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            h = norm(h) if self.shortcut == "pre" else norm(linear(h))
            last = index == 1
            if last and self.shortcut == "post":
                h = h + x
            hidden.append(h)
            h = self.activation(h)
            if self.shortcut == "pre":
                h = linear(h)
        return h + x if self.shortcut == "pre" else h


class DeepNetwork(nn.Module):
    """Digits (N, 1, 8, 8) to logits (N, 10), by `depth` hidden layers of equal width in blocks of two."""

    def __init__(self, design: Design, depth: int, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width, design) for _ in range(depth // 2))

    def forward(self, x: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, [] if hidden is None else hidden)
        return self.last(h)


def layers(design: Design, batch: Batch, depth: int, width: int, seed: int = 0) -> tuple[list[Tensor], list[float]]:
    """What enters each activation function, (N, width) each, and the gradient norm of the loss with respect to it.

    In float64, in which no gradient of these networks is rounded to zero.
    """
    torch.manual_seed(seed)
    hidden: list[Tensor] = []
    model = DeepNetwork(design, depth, width).double()
    loss = F.cross_entropy(model(batch[0].double(), hidden), batch[1])
    gradients = torch.autograd.grad(loss, hidden)
    return [h.detach() for h in hidden], [gradient.norm().item() for gradient in gradients]


def factor(design: Design, batch: Batch, depth: int, width: int, seed: int = 0) -> float:
    """Factor of a layer in the gradient: geometric mean over the layers, from the last to the first."""
    _, norms = layers(design, batch, depth, width, seed)
    return (norms[0] / norms[-1]) ** (1 / (len(norms) - 1))


def train(design: Design, batch: Batch, depth: int, width: int, steps: int, seed: int = 0) -> float:
    """Training loss over the last tenth of the steps, by SGD with momentum, the better of the rates 0.1 and 0.01."""
    return min(_train(design, batch, depth, width, steps, lr, seed) for lr in (0.1, 0.01))


def _train(design: Design, batch: Batch, depth: int, width: int, steps: int, lr: float, seed: int) -> float:
    torch.manual_seed(seed)
    model = DeepNetwork(design, depth, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        index = torch.randint(len(batch[0]), (64,))
        loss = F.cross_entropy(model(batch[0][index]), batch[1][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return math.inf
    end = losses[-max(1, steps // 10) :]
    return sum(end) / len(end)


FUNCTIONS = {
    "sigmoid, Glorot's": Design("sigmoid", GLOROT),
    "tanh, Glorot's": Design("tanh", GLOROT),
    "ReLU, torch's default": Design("ReLU", DEFAULT),
    "ReLU, He's": Design("ReLU", HE),
}
REMEDIES = {
    "plain, torch's default": Design(gain=DEFAULT),
    "plain, He's": Design(),
    "batch norm": Design(batch_norm=True),
    "ReLU(F + x)": Design(shortcut="post"),
    "ReLU(F + x), batch norm": Design(batch_norm=True, shortcut="post"),
    "x + F, batch norm": Design(batch_norm=True, shortcut="pre"),
}
MARKERS = "osD^vP"


def draw(depth: int = 30, width: int = 64, steps: int = 150, images: int = 256, seed: int = 0) -> RGBImage:
    """Draws the figure of the section.

    Args:
        depth: hidden layers of the networks; in blocks of two.
        width: units of each layer.
        steps: training steps of each network in the last panel.
        images: number of digits on which gradients and activations are measured.
        seed: random seed.
    """
    check_at_least(4, depth=depth)
    check_at_least(2, width=width, images=images)
    check_at_least(1, steps=steps)
    check_at_most(200, depth=depth)
    check_seed(seed=seed)
    batch = digits(images)
    figure, axes = new_figure(6, size=3.4, columns=2)
    _plot_gradients(axes[0], FUNCTIONS, batch, depth, width, seed)
    axes[0].set_title("activation functions", fontsize="medium")
    _plot_factors(axes[1], batch, depth, width, seed)
    _plot_activations(axes[2], Design(gain=DEFAULT), batch, depth, width, seed)
    axes[2].set_title("ReLU, torch's default: inputs of ReLU", fontsize="medium")
    _plot_activations(axes[3], Design(gain=DEFAULT, batch_norm=True), batch, depth, width, seed)
    axes[3].set_title("the same with batch norm", fontsize="medium")
    _plot_gradients(axes[4], REMEDIES, batch, depth, width, seed)
    axes[4].set_title("batch norm and shortcuts, with ReLU", fontsize="medium")
    _plot_training(axes[5], digits(), depth, width, steps, seed)
    return render_figure(figure)


def _plot_gradients(ax: Any, designs: dict[str, Design], batch: Batch, depth: int, width: int, seed: int) -> None:
    for (name, design), color, marker in zip(designs.items(), PALETTE, MARKERS, strict=False):
        norms = layers(design, batch, depth, width, seed)[1]
        ax.plot(range(1, len(norms) + 1), norms, color=color, marker=marker, markersize=3, linewidth=1, label=name)
    ax.set(yscale="log", xlabel="layer, from input to output", ylabel="gradient norm")
    ax.legend(fontsize="x-small")


def _plot_factors(ax: Any, batch: Batch, depth: int, width: int, seed: int) -> None:
    gains = torch.linspace(0.2, 3, 15).tolist()
    laws = {"sigmoid": 1 / 4, "tanh": 1.0, "ReLU": 1 / math.sqrt(2)}
    for (name, slope), color, marker in zip(laws.items(), PALETTE, MARKERS, strict=False):
        found = [factor(Design(name, gain), batch, depth, width, seed) for gain in gains]
        ax.plot(gains, found, marker, color=color, markersize=4, label=name)
        ax.plot(gains, [slope * gain for gain in gains], color=color, linewidth=1)
    ax.axhline(1, color="black", linestyle=":", label="neither vanishes nor explodes")
    ax.set_title("factor of a layer; lines: gain / √2, gain, gain / 4", fontsize="medium")
    ax.set(xlabel="gain of the initialization", ylabel="factor", ylim=(0, 2.2))
    ax.legend(fontsize="x-small", loc="upper left")


def _plot_activations(ax: Any, design: Design, batch: Batch, depth: int, width: int, seed: int) -> None:
    sizes = torch.stack([h.abs().flatten() for h in layers(design, batch, depth, width, seed)[0]])
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=sizes.dtype)
    low, lower, middle, upper, high = sizes.quantile(quantiles, dim=1)
    x = range(1, len(sizes) + 1)
    ax.fill_between(x, low, high, color=PALETTE[0], alpha=0.25, label="5% to 95%")
    ax.fill_between(x, lower, upper, color=PALETTE[0], alpha=0.5, label="25% to 75%")
    ax.plot(x, middle, color="black", linewidth=1, label="median")
    law = [middle[0].item() * (design.gain / math.sqrt(2)) ** layer for layer in range(len(sizes))]
    ax.plot(x, law, "--", color=PALETTE[1], label="(gain / √2) to the power of the layer")
    ax.set(yscale="log", xlabel="layer, from input to output", ylabel="absolute value")
    ax.legend(fontsize="x-small", loc="lower left")


def _plot_training(ax: Any, batch: Batch, depth: int, width: int, steps: int, seed: int) -> None:
    depths = sorted({2, 2 * max(1, depth // 6), 2 * max(1, depth // 3), 2 * (depth // 2)})
    designs = {"sigmoid, Glorot's": FUNCTIONS["sigmoid, Glorot's"], **REMEDIES}
    colors = ("black", *PALETTE)
    for (name, design), color, marker in zip(designs.items(), colors, f"x{MARKERS}", strict=True):
        losses = [train(design, batch, count, width, steps, seed) for count in depths]
        ax.plot(depths, losses, color=color, marker=marker, markersize=4, linewidth=1, label=name)
    ax.axhline(math.log(10), color="0.4", linestyle=":")
    ax.set(yscale="log", xlabel="hidden layers", ylabel="training loss", xticks=depths, ylim=(1e-3, 4))
    ax.set_title(f"digits after {steps} steps; dotted: guessing", fontsize="medium")
    ax.legend(fontsize="xx-small", loc="lower center", ncols=2)
