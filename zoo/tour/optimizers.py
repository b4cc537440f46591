"""Force becomes velocity: paths of four optimizers, noise of mini-batches, and sensitivity to the learning rate.

Gradient descent takes the force -grad L for the velocity of an overdamped particle; momentum integrates it (Polyak
1964); Adam divides the averaged force by the root of its averaged square (Kingma and Ba 2015, arXiv 1412.6980), which
the paper keeps for each coordinate and the lecture's form, `zoo.optim.ScalarAdam`, in one number. Turning the
coordinates turns the paths of all but the paper's Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.optim import SGD, Adam, Optimizer

from zoo.datamodules import Digits
from zoo.errors import check_at_least, check_at_most
from zoo.models.mlp.network import DropoutMLP
from zoo.optim import ScalarAdam
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage

Batch = tuple[Tensor, Tensor]


class Surface(NamedTuple):
    """A loss of two parameters.

    Attributes:
        name: name in titles.
        loss: function from points (..., 2) to losses (...).
        start: first point.
        reach: half the width of what is drawn.
        rates: learning rate of each optimizer.
    """

    name: str
    loss: Callable[[Tensor], Tensor]
    start: tuple[float, float]
    reach: float
    rates: dict[str, float]


def valley(x: Tensor) -> Tensor:
    """Narrow valley (u^2 + 25 v^2) / 2: gradient descent is stable below the learning rate 2 / 25."""
    return (x[..., 0] ** 2 + 25 * x[..., 1] ** 2) / 2


def saddle(x: Tensor) -> Tensor:
    """Saddle u^2 / 2 - v^2 / 2 + v^4 / 4 at the origin, between minima at v = -1 and v = 1."""
    u, v = x[..., 0], x[..., 1]
    return u**2 / 2 - v**2 / 2 + v**4 / 4


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "gradient descent": SGD,
    "momentum 0.9": partial(SGD, momentum=0.9),
    "ScalarAdam": ScalarAdam,
    "Adam": Adam,
}
COLORS = dict(zip(OPTIMIZERS, PALETTE, strict=False))
SURFACES = (
    Surface("valley", valley, (-4.0, 1.0), 4.6,
            {"gradient descent": 0.07, "momentum 0.9": 0.01, "ScalarAdam": 0.25, "Adam": 0.25}),
    Surface("saddle", saddle, (-1.5, 0.02), 1.9,
            {"gradient descent": 0.1, "momentum 0.9": 0.03, "ScalarAdam": 0.1, "Adam": 0.1}),
)  # fmt: skip


def rotation(degrees: float) -> Tensor:
    """Matrix of a counterclockwise rotation, float64 (2, 2)."""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.double)


def trace(
    optimizer: Callable[[Iterable[Tensor]], Optimizer], surface: Surface, degrees: float = 0.0, steps: int = 60
) -> Tensor:
    """Path of an optimizer on a surface that is turned about the origin, (steps + 1, 2).

    Args:
        optimizer: function from parameters to an optimizer.
        surface: surface before it is turned.
        degrees: angle of the rotation.
        steps: optimizer steps.
    """
    turn = rotation(degrees)
    x = (turn @ torch.tensor(surface.start, dtype=torch.double)).requires_grad_()
    algorithm = optimizer([x])
    path = [x.detach().clone()]
    for _ in range(steps):
        algorithm.zero_grad()
        surface.loss(x @ turn).backward()  # x @ turn turns x back
        algorithm.step()
        path.append(x.detach().clone())
    return torch.stack(path)


def rotation_error(name: str, surface: Surface, degrees: float, steps: int = 60) -> float:
    """Largest distance between the path on the turned surface and the turned path of the other; 0 if equivariant."""
    optimizer = partial(OPTIMIZERS[name], lr=surface.rates[name])
    turned = trace(optimizer, surface, 0.0, steps) @ rotation(degrees).T
    return (trace(optimizer, surface, degrees, steps) - turned).norm(dim=1).max().item()


def digits(n: int | None = None) -> Batch:
    """The first `n` training images of the digits, (n, 1, 8, 8), and their labels (n,); all by default."""
    data = Digits()
    data.setup("fit")
    x, y = data.split("train")
    return x[:n], y[:n]


def network(seed: int = 0) -> DropoutMLP:
    """The network that the digits are given to: 64 - 32 - 10, without dropout."""
    torch.manual_seed(seed)
    return DropoutMLP((1, 8, 8), 10, width=32, depth=1, input_dropout=0.0, hidden_dropout=0.0)


def sample_gradients(model: DropoutMLP, batch: Batch) -> Tensor:
    """Gradient of the cross entropy of each sample, (N, number of parameters)."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x.unsqueeze(0),)), y.unsqueeze(0))

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch)
    return torch.cat([gradient.flatten(1) for gradient in found.values()], dim=1)


def batch_noise(gradients: Tensor, size: int, batches: int, generator: torch.Generator) -> float:
    """Noise of a mini-batch's gradient: root mean square distance from the gradient of all samples.

    Args:
        gradients: gradients of the N samples, (N, P).
        size: samples per batch, drawn without replacement, as in an epoch.
        batches: number of batches.
        generator: random number generator.
    """
    mean = gradients.mean(0)
    drawn = (gradients[torch.randperm(len(gradients), generator=generator)[:size]].mean(0) for _ in range(batches))
    return math.sqrt(sum((found - mean).square().sum().item() for found in drawn) / batches)


def noise_law(gradients: Tensor, size: int) -> float:
    """Noise in theory: s / sqrt(B) sqrt((N - B) / (N - 1)), s^2 the summed variance of the samples' gradients.

    The second root belongs to draws without replacement; it is close to 1 for B much smaller than N.
    """
    n, variance = len(gradients), gradients.var(0, correction=0).sum().item()
    return math.sqrt(variance / size * (n - size) / (n - 1))


def final_loss(name: str, lr: float, batch: Batch, steps: int, seed: int = 0, batch_size: int = 64) -> float:
    """Training loss on all samples after `steps` steps of mini-batches; infinite if it diverges."""
    model = network(seed)
    optimizer = OPTIMIZERS[name](model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    x, y = batch
    for _ in range(steps):
        index = torch.randint(len(x), (batch_size,), generator=generator)
        loss = F.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        final = F.cross_entropy(model(x), y).item()
    return final if math.isfinite(final) else math.inf


def sweep(batch: Batch, rates: Iterable[float], steps: int, seeds: int) -> dict[str, list[float]]:
    """Median over the seeds of `final_loss`, for each optimizer and each learning rate."""

    def median(name: str, lr: float) -> float:
        return sorted(final_loss(name, lr, batch, steps, seed) for seed in range(seeds))[seeds // 2]

    rates = list(rates)
    return {name: [median(name, lr) for lr in rates] for name in OPTIMIZERS}


def draw(angle: float = 30.0, steps: int = 60, train_steps: int = 150, rates: int = 11, seeds: int = 3) -> RGBImage:
    """Draws the figure of the section.

    Args:
        angle: angle by which valley and saddle are turned, in degrees.
        steps: optimizer steps of the paths.
        train_steps: optimizer steps of each training on the digits.
        rates: number of learning rates, from 1e-4 to 10.
        seeds: number of random seeds of each training; the median is shown.
    """
    check_at_least(1, steps=steps, train_steps=train_steps, seeds=seeds)
    check_at_least(2, rates=rates)
    check_at_least(-360, angle=angle)
    check_at_most(360, angle=angle)
    figure, axes = new_figure(6, size=3.4, columns=2)
    for row, surface in enumerate(SURFACES):
        _plot_paths(axes[2 * row], surface, 0.0, steps)
        _plot_paths(axes[2 * row + 1], surface, angle, steps)
    axes[0].legend(fontsize="x-small", loc="lower left")
    batch = digits()
    _plot_noise(axes[4], sample_gradients(network(), batch))
    _plot_sweep(axes[5], batch, torch.logspace(-4, 1, rates).tolist(), train_steps, seeds)
    return render_figure(figure)


def _plot_paths(ax: Any, surface: Surface, degrees: float, steps: int) -> None:
    """Contours and paths; where the surface is turned, also the turned path of Adam on the other one."""
    turn = rotation(degrees)
    grid = 1.5 * torch.linspace(-surface.reach, surface.reach, 300, dtype=torch.double)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    loss = surface.loss(points @ turn)
    levels = loss.min() + (loss.max() - loss.min()) * torch.linspace(0, 1, 14, dtype=torch.double) ** 3
    ax.contour(grid, grid, loss, levels=levels.unique().tolist(), colors="0.8", linewidths=0.7)
    for name, marker in zip(OPTIMIZERS, "os^D", strict=True):
        path = trace(partial(OPTIMIZERS[name], lr=surface.rates[name]), surface, degrees, steps)
        ax.plot(*path.T, color=COLORS[name], marker=marker, markersize=2.5, linewidth=1, label=name)
    title = surface.name
    if degrees:
        adam = partial(OPTIMIZERS["Adam"], lr=surface.rates["Adam"])
        ax.plot(*(trace(adam, surface, 0.0, steps) @ turn.T).T, "k--", linewidth=1, label="Adam before, turned")
        errors = {name: rotation_error(name, surface, degrees, steps) for name in OPTIMIZERS}
        others = max(error for name, error in errors.items() if name != "Adam")
        title = f"turned by {degrees:g}°: Adam differs by {errors['Adam']:.2f}, others by {others:.0e}"
        ax.legend(*([part[-1:] for part in ax.get_legend_handles_labels()]), fontsize="x-small", loc="lower left")
    ax.set_title(title, fontsize="medium")
    ax.set_box_aspect(0.7)  # that of the limits: equal units on both axes
    ax.set(xlim=(-surface.reach, surface.reach), ylim=(-0.7 * surface.reach, 0.7 * surface.reach))


def _plot_noise(ax: Any, gradients: Tensor) -> None:
    sizes = [2**power for power in range(11) if 2**power < len(gradients)]
    generator = torch.Generator().manual_seed(0)
    measured = [batch_noise(gradients, size, 200, generator) for size in sizes]
    law = [noise_law(gradients, size) for size in sizes]
    single = noise_law(gradients, 1)
    ax.plot(sizes, [single / math.sqrt(size) for size in sizes], "k:", label="1/√B")
    ax.plot(sizes, law, "k--", linewidth=1, label=f"1/√B, without replacement of {len(gradients)}")
    ax.plot(sizes, measured, "o", color=PALETTE[0], label="measured, 200 batches")
    ax.axhline(gradients.mean(0).norm().item(), color=PALETTE[1], linewidth=1, label="norm of the gradient itself")
    ax.set(xscale="log", yscale="log", xlabel="batch size B", ylabel="noise of the gradient")
    ax.set_title("mini-batches of digits, before training", fontsize="medium")
    ax.legend(fontsize="x-small")


def _plot_sweep(ax: Any, batch: Batch, rates: list[float], steps: int, seeds: int) -> None:
    losses = sweep(batch, rates, steps, seeds)
    for (name, values), marker in zip(losses.items(), "os^D", strict=True):
        ax.plot(rates, values, color=COLORS[name], marker=marker, markersize=4, label=name)
    ax.axhline(math.log(10), color="0.4", linestyle=":", label="ln 10: guessing")
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="training loss", ylim=(None, 12))
    ax.set_title(f"digits after {steps} steps", fontsize="medium")
    ax.legend(fontsize="x-small", loc="lower left")
