"""Early stopping: when the validation loss is lowest, what stopping does, what patience costs, and what choosing costs.

On a quadratic loss with the eigenvalues lambda, tau steps of gradient descent from 0 with the learning rate eta leave
1 - (1 - eta lambda)^tau of the solution, and weight decay alpha leaves lambda / (lambda + alpha): about the same for
alpha = 1 / (tau eta) (Goodfellow et al. 2016, Deep Learning, section 7.8, eq. 7.40 to 7.45).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import check_at_least, check_at_most, check_seed
from zoo.models.mlp.network import DropoutMLP
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage
from zoo.tour.optimizers import Batch, digits

SIZES = (25, 50, 100, 200, 400, 800)
PATIENCES = (1, 2, 3, 5, 8, 12, 20, 30)
ETA = 0.05  # below 2 / lambda for the largest eigenvalue of the digits


@dataclass
class Run:
    """Losses of a training, measured at its start and after each epoch.

    Attributes:
        training: mean loss on the training images, (epochs + 1,).
        held_out: loss on each of the M other images, (epochs + 1, M).
    """

    training: Tensor
    held_out: Tensor

    def validation(self, size: int) -> Tensor:
        """Mean loss on the first `size` held-out images, (epochs + 1,)."""
        return self.held_out[:, :size].mean(1)

    def measured(self, size: int) -> Tensor:
        """Mean loss on the held-out images after the first `size`, by which nothing is chosen, (epochs + 1,)."""
        return self.held_out[:, size:].mean(1)


def shuffled_digits(seed: int) -> Batch:
    """The 1,200 training images in random order."""
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order], y[order]


def train(images: int, epochs: int, seed: int = 0, batch_size: int = 16) -> Run:
    """Trains a network of two hidden layers of 64 on digits by Adam, learning rate 3e-3, without any regularization.

    Args:
        images: number of training images; the rest of the 1,200 are held out.
        epochs: epochs over the training images.
        seed: random seed of images, weights and mini-batches.
        batch_size: images per step.
    """
    torch.manual_seed(seed)
    x, y = shuffled_digits(seed)
    model = DropoutMLP((1, 8, 8), 10, width=64, depth=2, input_dropout=0.0, hidden_dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for epoch in range(epochs + 1):
        if epoch:
            for index in torch.randperm(images).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
        with torch.no_grad():
            losses.append(F.cross_entropy(model(x), y, reduction="none"))
    found = torch.stack(losses)
    return Run(found[:, :images].mean(1), found[:, images:])


def stopped_epoch(losses: Sequence[float], patience: int) -> int:
    """Epoch after which early stopping ends a run: `patience` validations in a row had no new minimum.

    Args:
        losses: validation losses, at the start and after each epoch.
        patience: number of validations without an improvement, as in Lightning's EarlyStopping.
    """
    best, waited = math.inf, 0
    for epoch, loss in enumerate(losses):
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == patience:
            return epoch
    return len(losses) - 1


def chosen_epoch(losses: Sequence[float], patience: int) -> int:
    """Epoch of the lowest validation loss until the run is stopped, whose weights are kept."""
    seen = losses[: stopped_epoch(losses, patience) + 1]
    return min(range(len(seen)), key=seen.__getitem__)


def regret(run: Run, validation: int, patience: int) -> float:
    """Measured loss of the epoch that is chosen, minus that of the best epoch of the whole run; at least 0."""
    measured = run.measured(validation)
    chosen = chosen_epoch(run.validation(validation).tolist(), patience)
    return (measured[chosen] - measured.min()).item()


@dataclass
class Choice:
    """Losses after a choice by the lowest validation loss, each a mean over draws of the validation images.

    Attributes:
        validation: validation loss of what was chosen.
        measured: its loss on other images.
        best: lowest loss on these that any of the candidates has.
    """

    validation: float
    measured: float
    best: float


def choose(candidates: Tensor, size: int, draws: int, generator: torch.Generator) -> Choice:
    """Chooses one of several candidates by `size` validation images, and measures it on the other images.

    Args:
        candidates: losses of C candidates on M images, (C, M).
        size: number of validation images, below M.
        draws: draws of the validation images.
        generator: random number generator of the draws.
    """
    found = []
    for _ in range(draws):
        order = torch.randperm(candidates.shape[1], generator=generator)
        validation, measured = (candidates[:, part].mean(1) for part in (order[:size], order[size:]))
        chosen = validation.argmin()
        found.append([validation[chosen].item(), measured[chosen].item(), measured.min().item()])
    return Choice(*torch.tensor(found).mean(0).tolist())


def gaps(size: int, validation: int, steps: int, seeds: Sequence[int]) -> Tensor:
    """Mean over the seeds of training loss and validation loss after all steps, and of both where it stops, (2, 2).

    Args:
        size: number of training images.
        validation: number of validation images.
        steps: training steps, rounded up to whole epochs.
        seeds: random seeds of the runs.
    """
    found = torch.zeros(2, 2)
    for seed in seeds:
        run = train(size, math.ceil(steps / math.ceil(size / 16)), seed)
        losses = torch.stack([run.training, run.validation(validation)])
        found += torch.stack([losses[:, -1], losses[:, losses[1].argmin()]])
    return found / len(seeds)


def shrinkage_of_steps(eigenvalue: Tensor, steps: float, eta: float) -> Tensor:
    """Fraction of the solution that gradient descent from 0 has reached: 1 - (1 - eta lambda)^tau, (...)."""
    return 1 - (1 - eta * eigenvalue) ** steps


def shrinkage_of_decay(eigenvalue: Tensor, alpha: float) -> Tensor:
    """Fraction of the solution that weight decay alpha leaves: lambda / (lambda + alpha), (...)."""
    return eigenvalue / (eigenvalue + alpha)


def linear_problem(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares from pixels in [0, 1] to one-hot labels, loss |x w - y|^2 / 2 per sample, float64.

    Returns:
        Eigenvalues of the Hessian, (D,); its eigenvectors as columns, (D, D); and the solution's coordinates along
        them times the eigenvalues, (D, 10).
    """
    x, y = _linear(batch)
    eigenvalues, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return eigenvalues.clamp_min(0), vectors, vectors.T @ x.T @ y / len(x)


def linear_losses(training: Batch, held_out: Batch, times: Iterable[float], eta: float = ETA) -> list[list[float]]:
    """Held-out loss of linear regression after tau = t / eta steps, and with weight decay alpha = 1 / t, for times t.

    Returns:
        Losses by early stopping, and by weight decay.
    """
    eigenvalues, vectors, targets = linear_problem(training)
    x, y = _linear(held_out)
    positive = eigenvalues > 1e-12
    inverse = torch.where(positive, 1 / eigenvalues, 0.0).unsqueeze(1)

    def loss(kept: Tensor) -> float:
        weights = vectors @ (kept.unsqueeze(1) * inverse * targets)
        return ((x @ weights - y).square().sum(1).mean() / 2).item()

    times = list(times)
    by_steps = [loss(shrinkage_of_steps(eigenvalues, time / eta, eta)) for time in times]
    by_decay = [loss(shrinkage_of_decay(eigenvalues, 1 / time)) for time in times]
    return [by_steps, by_decay]


def _linear(batch: Batch) -> tuple[Tensor, Tensor]:
    """Pixels (N, 64) in [0, 1] and one-hot labels (N, 10), float64."""
    x, y = batch
    return (x.flatten(1).double() + 1) / 2, F.one_hot(y, 10).double()


def draw(
    images: int = 100, validation: int = 200, epochs: int = 120, seeds: int = 10, steps: int = 600, seed: int = 0
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        images: number of training images.
        validation: number of validation images.
        epochs: epochs of the runs.
        seeds: number of runs, each with other images and weights; at most 3 in the panel on data size.
        steps: training steps for each number of images in the panel on data size.
        seed: first random seed.
    """
    check_at_least(10, images=images, validation=validation)
    check_at_most(600, images=images)
    check_at_most(500, validation=validation)  # so that others are left to measure on
    check_at_most(1000, seeds=seeds)
    check_at_least(1, steps=steps, seeds=seeds)
    check_at_least(2, epochs=epochs)
    check_at_most(10_000, epochs=epochs)
    check_seed(seed=seed)
    figure, axes = new_figure(6, size=3.4, columns=2)
    runs = [train(images, epochs, seed + k) for k in range(seeds)]
    _plot_run(axes[0], runs[0], images, validation)
    _plot_sizes(axes[1], validation, steps, range(seed, seed + min(3, seeds)))
    _plot_shrinkage(axes[2])
    _plot_linear(axes[3], images, seed)
    _plot_patience(axes[4], runs, validation)
    _plot_choice(axes[5], runs, seed)
    return render_figure(figure)


def _plot_run(ax: Any, run: Run, images: int, validation: int) -> None:
    losses = {"training": run.training, "validation": run.validation(validation), "other": run.measured(validation)}
    for (name, values), color in zip(losses.items(), PALETTE, strict=False):
        ax.plot(values, color=color, label=name)
    best = int(losses["validation"].argmin())
    ax.plot([best], [losses["validation"][best]], "*", color="black", markersize=10, label=f"minimum, epoch {best}")
    ax.set_title(f"{images} digits, validation on {validation}", fontsize="medium")
    ax.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    ax.legend(fontsize="x-small", loc="upper right")


def _plot_sizes(ax: Any, validation: int, steps: int, seeds: Sequence[int]) -> None:
    sizes = [size for size in SIZES if size <= 1200 - validation]
    losses = torch.stack([gaps(size, validation, steps, seeds) for size in sizes])
    for index, (name, color) in enumerate((("last step", PALETTE[1]), ("stopped", PALETTE[0]))):
        training, validated = losses[:, index].unbind(1)
        ax.plot(sizes, validated - training, "o-", color=color, markersize=4, label=f"gap, {name}")
        ax.plot(sizes, validated, "--", color=color, linewidth=1, label=f"validation loss, {name}")
    ax.set_title(f"validation minus training loss, {steps} steps", fontsize="medium")
    ax.set(xscale="log", yscale="log", xlabel="training images", ylabel="loss")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend(fontsize="x-small", loc="upper right")


def _plot_shrinkage(ax: Any) -> None:
    eigenvalues = torch.logspace(-5, math.log10(0.5 / ETA), 200, dtype=torch.double)
    for steps, color in zip((10, 100, 10_000), PALETTE, strict=False):
        alpha = 1 / (steps * ETA)
        ax.plot(eigenvalues, shrinkage_of_steps(eigenvalues, steps, ETA), color=color, label=f"{steps:,} steps")
        kept = shrinkage_of_decay(eigenvalues, alpha)
        ax.plot(eigenvalues, kept, "--", color=color, linewidth=1, label=f"weight decay {alpha:g}")
    ax.set_title("what is left of the solution", fontsize="medium")
    ax.set(xscale="log", xlabel="eigenvalue of the Hessian", ylabel="fraction")
    ax.legend(fontsize="x-small", loc="upper left")


def _plot_linear(ax: Any, images: int, seed: int) -> None:
    x, y = shuffled_digits(seed)
    times = torch.logspace(-1, 5, 49, dtype=torch.double).tolist()
    losses = linear_losses((x[:images], y[:images]), (x[images:], y[images:]), times)
    names = ("early stopping", "-"), ("weight decay", "--")
    for (name, style), values, color in zip(names, losses, PALETTE, strict=False):
        best = min(range(len(times)), key=values.__getitem__)
        ax.plot(times, values, style, color=color, label=f"{name}: {values[best]:.3f} at best")
        ax.plot([times[best]], [values[best]], "o", color=color)
    ax.set_title(f"linear regression on {images} digits, held-out loss", fontsize="medium")
    ax.set(xscale="log", xlabel="steps · learning rate, or 1 / weight decay", ylabel="squared error / 2")
    ax.legend(fontsize="x-small", loc="upper center")


def _plot_patience(ax: Any, runs: Sequence[Run], validation: int) -> None:
    stops, regrets = [], []
    for patience in PATIENCES:
        stops.append([float(stopped_epoch(run.validation(validation).tolist(), patience)) for run in runs])
        regrets.append([regret(run, validation, patience) for run in runs])
    right = ax.twinx()
    for axis, values, color, name in (
        (ax, regrets, PALETTE[0], "regret"),
        (right, stops, PALETTE[1], "epochs trained"),
    ):
        table = torch.tensor(values)
        axis.plot(PATIENCES, table.mean(1), "o-", color=color, markersize=4)
        axis.fill_between(PATIENCES, table.amin(1), table.amax(1), color=color, alpha=0.15)
        axis.set_ylabel(name, color=color)
        axis.set_ylim(0, None)
    ax.set_title(f"patience: mean and range of {len(runs)} runs", fontsize="medium")
    ax.set(xscale="log", xlabel="patience, epochs")
    ax.set_xticks(PATIENCES, [str(patience) for patience in PATIENCES])
    ax.minorticks_off()


def _plot_choice(ax: Any, runs: Sequence[Run], seed: int, draws: int = 100) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [size for size in (5, 10, 20, 40, 80, 160, 320) if size < runs[0].held_out.shape[1]]
    found = [[choose(run.held_out, size, draws, generator) for run in runs] for size in sizes]
    lines = (
        ("validation loss of the chosen epoch", [[c.validation for c in row] for row in found], PALETTE[1], "s-"),
        ("its loss on other images", [[c.measured for c in row] for row in found], PALETTE[0], "o-"),
        ("loss of the best epoch", [[c.best for c in row] for row in found], "black", ":"),
    )
    for name, values, color, style in lines:
        ax.plot(sizes, torch.tensor(values).mean(1), style, color=color, markersize=4, label=name)
    ax.set_title("optimism of the minimum", fontsize="medium")
    ax.set(xscale="log", xlabel="validation images", ylabel="loss")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend(fontsize="x-small")
