"""Classification by a diffusion model: the class whose denoiser has the smallest error on a noisy picture.

A model of p(x | C) classifies by Bayes' rule. Its likelihood follows from the errors of its denoiser: up to a constant
that is the same for all classes, ln p(x | C) = - int E |xi - xi_hat|^2 d ln(sigma) with the noise xi that was added and
its estimate xi_hat = (x + sigma xi - D) / sigma (Kong et al. 2023, arXiv 2302.03792, section 2, exact for the exact
denoiser D of the class). The same noise is used for all classes (Li et al. 2023, arXiv 2303.16203, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.resnet.network import PooledResNet
from zoo.plotting.figures import PALETTE
from zoo.tour.optimizers import Batch

#: Lowest and highest noise level at which pictures are classified.
LOWEST, HIGHEST = 0.1, 6.4
CHUNK = 1000  # noisy pictures that are denoised at a time


class ByClass(Protocol):
    """A denoiser that knows the class: noisy samples (N, ...), their noise level and labels (N,) to (N, ...)."""

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Tensor: ...


def noise_levels(count: int) -> list[float]:
    """Noise levels at equal distances of their logarithm, ascending."""
    if count == 1:
        return [(LOWEST * HIGHEST) ** 0.5]
    return [LOWEST * (HIGHEST / LOWEST) ** (index / (count - 1)) for index in range(count)]


@torch.no_grad()
def class_errors(
    denoise: ByClass, x: Tensor, classes: int, sigmas: list[float], repeats: int, generator: torch.Generator
) -> Tensor:
    """Squared errors |xi - xi_hat|^2 of the noise that the denoiser of each class finds, (N, levels, repeats, classes).

    Args:
        denoise: denoiser that knows the class.
        x: clean pictures, (N, ...).
        classes: number of classes.
        sigmas: noise levels.
        repeats: draws of the noise at each level; every class gets the same ones.
        generator: random number generator of the noise.
    """
    labels = torch.arange(classes).repeat(len(x))
    clean = x.repeat_interleave(classes, 0)
    errors = torch.empty(len(x), len(sigmas), repeats, classes, dtype=x.dtype)
    for level, sigma in enumerate(sigmas):
        for repeat in range(repeats):
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            noisy = (x + sigma * noise).repeat_interleave(classes, 0)
            parts = zip(noisy.split(CHUNK), labels.split(CHUNK), strict=True)
            denoised = torch.cat([denoise(part, sigma, of) for part, of in parts])
            found = ((denoised - clean) / sigma).square().flatten(1).sum(1)  # xi - xi_hat = (D - x) / sigma
            errors[:, level, repeat] = found.view(len(x), classes)
    return errors


def log_likelihood(errors: Tensor, sigmas: list[float]) -> Tensor:
    """ln p(x | C) for each picture and class, (N, classes), up to a constant: minus the integral over ln(sigma).

    Args:
        errors: errors of `class_errors`, (N, levels, repeats, classes).
        sigmas: the noise levels.
    """
    return -torch.trapezoid(errors.mean(2), torch.tensor(sigmas, dtype=errors.dtype).log(), dim=1)


def with_own_noise(errors: Tensor) -> Tensor:
    """The same errors, (N, levels, repeats, classes), with another repeat for each class: the noise is its own.

    With fewer repeats than classes, some of the classes still have the same noise.
    """
    return torch.stack([of_class.roll(label, 2) for label, of_class in enumerate(errors.unbind(3))], dim=3)


def accuracy_by_draws(errors: Tensor, labels: Tensor, draws: list[int], generator: torch.Generator) -> list[float]:
    """Accuracy if so many draws of a noise level and of noise are averaged, in a random order.

    Each draw is used once: of D draws, D // m groups of m are drawn, and their accuracies averaged.

    Args:
        errors: errors of `class_errors`, (N, levels, repeats, classes).
        labels: true classes, (N,).
        draws: numbers of draws, each at most levels * repeats.
        generator: random number generator of the order.
    """
    flat = errors.flatten(1, 2)
    flat = flat[:, torch.randperm(flat.shape[1], generator=generator)]

    def accuracy(count: int) -> float:
        groups = [part.mean(1) for part in flat.split(count, dim=1) if part.shape[1] == count]
        return sum((group.argmin(1) == labels).double().mean().item() for group in groups) / len(groups)

    return [accuracy(count) for count in draws]


def accuracy_by_level(errors: Tensor, labels: Tensor) -> list[float]:
    """Accuracy of one draw at each noise level, averaged over the repeats."""
    return (errors.argmin(3) == labels[:, None, None]).double().mean((0, 2)).tolist()


def train_classifier(batch: Batch, steps: int, seed: int = 0) -> nn.Module:
    """A residual network that classifies small pictures, in eval mode."""
    x, y = batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PooledResNet(x.shape[1:], 10, depth=6, widths=(32, 64))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            index = torch.randint(len(x), (128,))
            loss = F.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], batch: Batch) -> float:
    """Accuracy of a classifier on pictures and their labels."""
    return (model(batch[0]).argmax(1) == batch[1]).double().mean().item()


def plot_by_level(ax: Any, errors: dict[str, Tensor], labels: Tensor, sigmas: list[float]) -> None:
    """Accuracy of a single draw against its noise level, for each denoiser."""
    for (name, found), color, marker in zip(errors.items(), PALETTE, "os", strict=False):
        ax.plot(sigmas, accuracy_by_level(found, labels), color=color, marker=marker, markersize=4, label=name)
    ax.set(xscale="log", xlabel="noise level sigma", ylabel="share", ylim=(0, 1.03))


def plot_by_draws(ax: Any, errors: dict[str, Tensor], labels: Tensor, others: dict[str, float], seed: int) -> None:
    """Accuracy against the number of draws, for each denoiser, and accuracies of other classifiers as lines."""
    total = next(iter(errors.values())).flatten(1, 2).shape[1]
    draws = sorted({*(2**power for power in range(12) if 2**power < total), total})
    styles = zip(PALETTE, "os^", strict=False)
    for (name, found), (color, marker) in zip(errors.items(), styles, strict=False):
        values = accuracy_by_draws(found, labels, draws, torch.Generator().manual_seed(seed))
        ax.plot(draws, values, color=color, marker=marker, markersize=4, label=name)
    for (name, value), style in zip(others.items(), ("--", ":"), strict=False):
        ax.axhline(value, color="black", linestyle=style, linewidth=1, label=f"{name}: {value:.1%}")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="draws of noise level and noise", ylabel="accuracy", ylim=(0.4, 1.02))
    ax.set_title(f"class of the smallest error, {len(labels)} test digits", fontsize="medium")
    ax.legend(fontsize="x-small", loc="lower right")


def nearest_neighbor(training: Batch) -> Callable[[Tensor], Tensor]:
    """Classifier by the nearest training picture of each class: x (N, ...) to minus the squared distances (N, 10)."""
    by_class = [training[0][training[1] == label] for label in range(10)]

    def score(x: Tensor) -> Tensor:
        return torch.stack([-torch.cdist(x.flatten(1), own.flatten(1)).amin(1).square() for own in by_class], dim=1)

    return score
