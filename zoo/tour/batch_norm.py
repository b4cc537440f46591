"""Batch normalization in numbers: scale invariance, noise of the batch's statistics, and learning rates.

Under batch normalization (Ioffe and Szegedy 2015, arXiv 1502.03167) the outputs do not depend on the scale of a weight
matrix, so that its gradient is orthogonal to it and inversely proportional to its scale (van Laarhoven 2017, arXiv
1706.05350, section 2). A sample's normalized value depends on the others in its batch, with a noise of 1 / sqrt(B).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.plotting.figures import PALETTE
from zoo.tour.optimizers import Batch

EPS = 1e-12  # of the normalization; the default of 1e-5 would break the invariance at small scales


class NormalizedMLP(nn.Module):
    """Fully connected network on small pictures: hidden layers with or without batch normalization, then ReLU.

    Args:
        batch_norm: normalize the inputs of each ReLU.
        depth: hidden layers.
        width: units of each.
        pixels: pixels of a picture.
    """

    def __init__(self, batch_norm: bool, depth: int = 6, width: int = 64, pixels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for index in range(depth):
            linear = nn.Linear(width if index else pixels, width)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.BatchNorm1d(width, eps=EPS) if batch_norm else nn.Identity(), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 10))

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers, the last one included, which is not normalized."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to logits (N, 10)."""
        return self.layers(x)


class ScaledGradient(NamedTuple):
    """Loss and gradient after the weights of a layer are multiplied by a scale.

    Attributes:
        loss: cross entropy.
        norm: norm of the gradient with respect to the scaled weights.
        cosine: cosine of the angle between weights and gradient.
    """

    loss: float
    norm: float
    cosine: float


def scaled_gradient(batch_norm: bool, batch: Batch, scale: float, layer: int = 2, seed: int = 0) -> ScaledGradient:
    """Loss and gradient of a network at initialization, in float64, with one layer's weights scaled."""
    torch.manual_seed(seed)
    model = NormalizedMLP(batch_norm, pixels=batch[0][0].numel()).double()
    weight = model.linears[layer].weight
    with torch.no_grad():
        weight.mul_(scale)
    loss = F.cross_entropy(model(batch[0].double()), batch[1])
    (gradient,) = torch.autograd.grad(loss, weight)
    norm = gradient.norm().item()
    return ScaledGradient(loss.item(), norm, (weight * gradient).sum().item() / (weight.norm().item() * norm))


def final_loss(batch_norm: bool, batch: Batch, lr: float, steps: int, seed: int = 0) -> float:
    """Training loss on all samples as one batch, after SGD on batches of 64; infinite if it diverges."""
    torch.manual_seed(seed)
    model = NormalizedMLP(batch_norm, pixels=batch[0][0].numel())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        index = torch.randint(len(batch[0]), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0][index]), batch[1][index]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = F.cross_entropy(model(batch[0]), batch[1]).item()
    return loss if math.isfinite(loss) else math.inf


def statistics_noise(values: Tensor, size: int, draws: int, generator: torch.Generator) -> float:
    """Noise of a normalized value: root mean square deviation from the one by mean and variance of all samples.

    Args:
        values: values of one unit for the N samples, (N,).
        size: samples per batch, drawn independently, at least 2.
        draws: number of batches.
        generator: random number generator.
    """
    drawn = values[torch.randint(len(values), (draws, size), generator=generator)]
    normalized = (drawn - drawn.mean(1, keepdim=True)) / drawn.var(1, correction=0, keepdim=True).clamp_min(EPS).sqrt()
    exact = (drawn - values.mean()) / values.std(correction=0)
    return (normalized - exact).square().mean().sqrt().item()


def noise_law(values: Tensor, size: int) -> float:
    """Noise of a normalized value for large batches: sqrt((kappa + 3) / 4B), with the kurtosis kappa; 3 for a Gaussian.

    Mean and standard deviation of a batch have, relative to the true standard deviation, the variances 1 / B and
    (kappa - 1) / 4B; the error of a value z is that of the mean plus z times that of the standard deviation.
    """
    z = (values - values.mean()) / values.std(correction=0)
    return math.sqrt((z.pow(4).mean().item() + 3) / (4 * size))


def plot_rates(ax: Any, batch: Batch, rates: list[float], steps: int, seed: int) -> None:
    """Training loss against the learning rate, with and without batch normalization."""
    for batch_norm, color, marker in ((False, PALETTE[1], "s"), (True, PALETTE[0], "o")):
        losses = [final_loss(batch_norm, batch, lr, steps, seed) for lr in rates]
        name = "batch norm" if batch_norm else "without"
        ax.plot(rates, [min(loss, 99.0) for loss in losses], color=color, marker=marker, markersize=4, label=name)
    ax.axhline(math.log(10), color="0.4", linestyle=":", label="ln 10: guessing")
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="training loss", ylim=(1e-2, 20))
    ax.set_title(f"digits after {steps} steps; above: diverged", fontsize="medium")
    ax.legend(fontsize="x-small", loc="lower left")


def plot_scales(ax: Any, batch: Batch, seed: int) -> None:
    """Norm of the gradient against the scale of a layer's weights, with and without batch normalization."""
    scales = [10 ** (power / 4) for power in range(-8, 9)]
    for batch_norm, color, marker in ((False, PALETTE[1], "s"), (True, PALETTE[0], "o")):
        found = [scaled_gradient(batch_norm, batch, scale, seed=seed) for scale in scales]
        cosine = max(abs(one.cosine) for one in found)
        name = f"{'batch norm' if batch_norm else 'without'}, |cosine| of W and gradient up to {cosine:.0e}"
        ax.plot(scales, [one.norm for one in found], marker, color=color, markersize=4, label=name)
        if batch_norm:
            ax.plot(scales, [found[8].norm / scale for scale in scales], color=color, linewidth=1, label="1 / scale")
    ax.set(xscale="log", yscale="log", xlabel="scale of the weights W of a layer", ylabel="norm of the gradient")
    ax.set_title("scale invariance", fontsize="medium")
    ax.legend(fontsize="x-small", loc="lower left")


def plot_noise(ax: Any, batch: Batch, draws: int, seed: int) -> None:
    """Noise of the normalized values of some units against the batch size, and their law."""
    torch.manual_seed(seed)
    model = NormalizedMLP(False, pixels=batch[0][0].numel())
    with torch.no_grad():
        values = model.linears[0](batch[0].flatten(1))
    z = (values - values.mean(0)) / values.std(0)
    order = z.pow(4).mean(0).argsort()
    sizes = [2**power for power in range(1, 9)]
    generator = torch.Generator().manual_seed(seed)
    for unit, color, marker in zip((order[0], order[-1]), PALETTE, "os", strict=False):
        of_unit = values[:, unit]
        kurtosis = z[:, unit].pow(4).mean().item()
        found = [statistics_noise(of_unit, size, draws, generator) for size in sizes]
        ax.plot(sizes, found, marker, color=color, markersize=4, label=f"unit of kurtosis {kurtosis:.1f}")
        ax.plot(sizes, [noise_law(of_unit, size) for size in sizes], color=color, linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="batch size B", ylabel="noise of the normalized value")
    ax.set_title("statistics of a batch; lines: √((κ + 3) / 4B)", fontsize="medium")
    ax.legend(fontsize="x-small")
