"""The learned force: noise and the denoiser's guess, generation, editing, and what the exact force cannot do.

The force of the reversed film follows from the denoiser, f' = 2 k_B T (D(x, sigma) - x) / sigma^2. The exact one of N
training samples returns these samples; a network that is trained by the same loss is worse on them and better on
others. Both are compared here, on models that come with the package. Editing is SDEdit (Meng et al. 2022, arXiv
2108.01073) and RePaint (Lugmayr et al. 2022, arXiv 2201.09865); classification by the same model is in
`zoo.tour.generative_classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.datamodules import Digits, FashionMNISTSubset
from zoo.datamodules.base import InMemoryDataModule
from zoo.errors import check_at_least, check_at_most, check_seed
from zoo.hub.loading import load
from zoo.models.diffusion.denoiser import IdealDenoiser, ScoreModel
from zoo.models.diffusion.editing import inpaint, vary
from zoo.models.diffusion.module import Diffusion
from zoo.models.diffusion.solvers import karras_sigmas, solve
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage, show_images
from zoo.tour.generative_classifier import (
    accuracy,
    class_errors,
    nearest_neighbor,
    noise_levels,
    plot_by_draws,
    plot_by_level,
    train_classifier,
    with_own_noise,
)
from zoo.tour.optimizers import Batch

#: Clothes that are generated and edited: ankle boot, bag, dress, pullover, sandal.
SHOWN = (9, 8, 3, 2, 5)
#: A printed T-shirt and an ankle boot, by class and place in it: no training picture is very similar.
NOISY = ((0, 1), (9, 3))
CLASSES = 10


def batches(data: InMemoryDataModule) -> tuple[Batch, Batch]:
    """Training and test split of a data module, pictures (N, C, H, W) in [-1, 1] and labels (N,)."""
    data.setup(None)
    return data.split("train"), data.split("test")


def picture(batch: Batch, label: int, place: int = 0) -> Tensor:
    """The picture at a place among those of a class, (1, C, H, W)."""
    return batch[0][batch[1] == label][place : place + 1]


def shown(batch: Batch) -> Tensor:
    """The first picture of each class of `SHOWN`, (5, C, H, W)."""
    return torch.cat([picture(batch, label) for label in SHOWN])


def guesses(model: ScoreModel, x: Tensor, labels: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """The denoiser's guesses D(x + sigma noise, sigma), (N, ...), at what the pictures `x` (N, ...) were."""
    return model.denoise(x + sigma * noise, sigma, labels)


def scaled(x: Tensor, sigma: float, spread: float) -> Tensor:
    """Noisy pictures scaled to the spread of clean ones, to be shown."""
    return x * spread / math.hypot(spread, sigma)


@torch.no_grad()
def relative_error(model: ScoreModel, batch: Batch, sigma: float, spread: float, generator: torch.Generator) -> float:
    """Mean squared error of the denoiser, over that of the best guess for Gaussian data of the same spread.

    The latter is sigma^2 s^2 / (sigma^2 + s^2) in each pixel, with the standard deviation s of a pixel.
    """
    x, y = batch
    error = guesses(model, x, y, sigma, torch.randn(x.shape, generator=generator)) - x
    return error.square().mean().item() * (1 / sigma**2 + 1 / spread**2)


@torch.no_grad()
def generate(model: ScoreModel, noise: Tensor, labels: Tensor, steps: int, sigma_max: float = 80.0) -> Tensor:
    """Pictures (N, ...) along the probability flow from noise (N, ...): the same noise for every denoiser."""
    sigmas = karras_sigmas(steps, sigma_max=sigma_max)
    return solve(lambda x, sigma: model.denoise(x.float(), sigma, labels), sigma_max * noise, sigmas).x.float()


def nearest(x: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest training picture of each picture, (N, ...), and the root mean square difference of a pixel, (N,)."""
    distance, index = torch.cdist(x.flatten(1), training.flatten(1)).min(1)
    return training[index], distance / math.sqrt(x[0].numel())


@torch.no_grad()
def redraw(
    model: Diffusion, x: Tensor, sigma: float, steps: int, generator: torch.Generator, labels: Tensor | None = None
) -> Tensor:
    """SDEdit: adds noise of the level `sigma` to pictures (N, C, H, W) and removes it, without a class by default."""
    sigmas = karras_sigmas(steps, model.sigma_min, sigma)
    return vary(model.guided(labels), x, sigmas, lambda: torch.randn(x.shape, generator=generator)).float()


@torch.no_grad()
def fill(model: Diffusion, x: Tensor, mask: Tensor, steps: int, generator: torch.Generator, labels: Tensor) -> Tensor:
    """Inpainting: redraws the pixels in the mask (H, W) of pictures (N, C, H, W) of these classes (N,)."""

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator)

    sigmas = karras_sigmas(steps, model.sigma_min, model.sigma_max)
    start = model.denoiser.mean + model.sigma_max * noise()
    return inpaint(model.guided(labels), start, x, mask, sigmas, noise, resamples=5).float()


def kept_class(
    model: Diffusion, classify: Callable[[Tensor], Tensor], x: Tensor, sigma: float, steps: int, seed: int
) -> float:
    """Share of the pictures that have the same class, by a classifier, before and after SDEdit without a class."""
    after = redraw(model, x, sigma, steps, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return (classify(after).argmax(1) == classify(x).argmax(1)).double().mean().item()


def draw(
    images: int = 200,
    levels: int = 8,
    repeats: int = 10,
    steps: int = 300,
    edit_steps: int = 20,
    train_steps: int = 300,
    seed: int = 0,
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        images: number of digits on which errors are measured, and of test digits that are classified.
        levels: noise levels at which they are classified.
        repeats: draws of the noise at each of these levels.
        steps: time steps of the film.
        edit_steps: noise levels of each edit.
        train_steps: training steps of the residual network that the classification is compared with.
        seed: random seed.
    """
    check_at_least(1, images=images, levels=levels, repeats=repeats, train_steps=train_steps)
    check_at_least(6, steps=steps)
    check_at_least(2, edit_steps=edit_steps)
    check_at_most(297, images=images)
    check_at_most(50, levels=levels, repeats=repeats)
    check_at_most(1000, steps=steps, edit_steps=edit_steps)
    check_at_most(10_000, train_steps=train_steps)
    check_seed(seed=seed)
    figure, axes = new_figure(8, size=3.4, columns=2)
    training, test = batches(FashionMNISTSubset())
    clothes: Diffusion = load("diffusion-fashion-mnist")
    _plot_guesses(axes[0], clothes, training, test, seed)
    _plot_film(axes[1], clothes, steps, seed)
    _plot_strengths(axes[4], clothes, test, edit_steps, seed)
    _plot_inpainting(axes[5], clothes, test, edit_steps, seed)
    _draw_digits(axes, images, levels, repeats, edit_steps, train_steps, seed)
    return render_figure(figure)


def _draw_digits(
    axes: list[Any], images: int, levels: int, repeats: int, steps: int, train_steps: int, seed: int
) -> None:
    """The panels on digits, whose exact force is that of all training samples of the network."""
    training, test = batches(Digits())
    model: Diffusion = load("diffusion-digits")
    ideal = IdealDenoiser(*training)
    _plot_errors(axes[2], {"learned": model, "exact": ideal}, training, test, images, seed)
    _plot_copies(axes[3], model, ideal, training, test, max(7, images // 4), 2 * steps, seed)
    x, y = test[0][:images], test[1][:images]
    sigmas = noise_levels(levels)
    found = {
        name: class_errors(denoise, x, CLASSES, sigmas, repeats, torch.Generator().manual_seed(seed))
        for name, denoise in (("learned force", model.denoise), ("exact force", ideal.denoise))
    }
    classifier = train_classifier(training, train_steps, seed)
    plot_by_level(axes[6], found, y, sigmas)
    shares = [kept_class(model, classifier, x, sigma, steps, seed) for sigma in sigmas]
    axes[6].plot(sigmas, shares, color="black", marker="^", markersize=4, label="class kept by SDEdit")
    axes[6].set_title("where the class is decided: one draw", fontsize="medium")
    axes[6].legend(fontsize="x-small", loc="lower center")
    by_draws = {**found, "learned, own noise for each class": with_own_noise(found["learned force"])}
    others = {
        "residual network": accuracy(classifier, (x, y)),
        "nearest training digit": accuracy(nearest_neighbor(training), (x, y)),
    }
    plot_by_draws(axes[7], by_draws, y, others, seed)


@torch.no_grad()
def _plot_guesses(ax: Any, model: Diffusion, training: Batch, test: Batch, seed: int) -> None:
    sigmas = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    ideal, spread = IdealDenoiser(*training), model.denoiser.sigma_data.item()
    generator, rows = torch.Generator().manual_seed(seed), []
    for label, place in NOISY:
        x, of = picture(test, label, place), torch.tensor([label])
        noise = torch.randn(x.shape, generator=generator)
        rows.append(torch.cat([x, *(scaled(x + sigma * noise, sigma, spread) for sigma in sigmas)]))
        for denoiser in (model, ideal):
            rows.append(torch.cat([x, *(guesses(denoiser, x, of, sigma, noise) for sigma in sigmas)]))
    columns, names = ["test", *(f"{sigma:g}" for sigma in sigmas)], ("noisy", "learned D", "exact D") * len(NOISY)
    show_images(ax, rows, columns, names, "noise sigma and the guesses at the picture")


@torch.no_grad()
def _plot_film(ax: Any, model: Diffusion, steps: int, seed: int, columns: int = 7) -> None:
    labels, seeds = torch.tensor(SHOWN), seed + torch.arange(len(SHOWN))
    states = model.trajectory(
        len(labels), steps + 1, labels=labels, seeds=seeds, solver="reverse_process", guidance_scale=0.0
    )
    sigmas = karras_sigmas(steps, model.sigma_min, model.sigma_max)
    wanted = [8.0 * 0.4**k for k in range(columns - 2)]
    places = [0, *(min(range(steps), key=lambda k: abs(sigmas[k] - sigma)) for sigma in wanted), steps]
    rows = [states[places, index] for index in range(len(labels))]
    show_images(ax, rows, [f"{sigmas[k]:.2g}" for k in places], (), f"the film by the learned force, {steps} steps")


def _plot_errors(ax: Any, models: dict[str, ScoreModel], training: Batch, test: Batch, images: int, seed: int) -> None:
    sigmas = [0.05 * 2 ** (k / 2) for k in range(17)]
    mean = training[0].mean(0)
    spread = (training[0] - mean).square().mean().sqrt().item()
    for (name, model), color in zip(models.items(), PALETTE, strict=False):
        for split, batch, style in (("training", training, "--"), ("test", test, "-")):
            generator = torch.Generator().manual_seed(seed)
            part = batch[0][:images], batch[1][:images]
            errors = [relative_error(model, part, sigma, spread, generator) for sigma in sigmas]
            ax.plot(sigmas, errors, style, color=color, label=f"{name} force, {split} digits")
    ax.axhline(1, color="0.5", linestyle=":", label="best guess for Gaussian data")
    ax.set(xscale="log", yscale="log", xlabel="noise level sigma", ylabel="error of D, relative", ylim=(1e-3, 30))
    ax.set_title("error of the denoiser, digits", fontsize="medium")
    ax.legend(fontsize="x-small", loc="lower right")


def _plot_copies(
    ax: Any, model: Diffusion, ideal: IdealDenoiser, training: Batch, test: Batch, count: int, steps: int, seed: int
) -> None:
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(len(labels), *training[0].shape[1:], generator=torch.Generator().manual_seed(seed))
    rows, names, distances = [], [], {"held out": nearest(test[0], training[0])[1].mean().item()}
    for name, denoiser in (("exact", ideal), ("learned", model)):
        samples = generate(denoiser, noise, labels, steps)
        copies, distance = nearest(samples, training[0])
        rows += [samples[:7], copies[:7]]
        names += [name, "nearest"]
        distances[name] = distance.mean().item()
    found = ", ".join(f"{name} {value:.2f}" for name, value in distances.items())
    show_images(ax, rows, (), names, f"samples and the nearest training digits\ndistance: {found}")


def _plot_strengths(ax: Any, model: Diffusion, test: Batch, steps: int, seed: int) -> None:
    sigmas = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    x = shown(test)
    generator = torch.Generator().manual_seed(seed)
    columns = [x, *(redraw(model, x, sigma, steps, generator) for sigma in sigmas)]
    rows = list(torch.stack(columns, dim=1))
    show_images(
        ax, rows, ["test", *(f"{sigma:g}" for sigma in sigmas)], (), "SDEdit: redrawn from the noise level sigma"
    )


def _plot_inpainting(ax: Any, model: Diffusion, test: Batch, steps: int, seed: int, count: int = 5) -> None:
    x = shown(test)
    mask = torch.zeros(x.shape[-2:], dtype=torch.bool)
    mask[:, x.shape[-1] // 2 :] = True
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(SHOWN).repeat_interleave(count)
    drawn = fill(model, x.repeat_interleave(count, 0), mask, steps, generator, labels)
    hidden = torch.where(mask, 0.0, x)
    rows = [torch.stack([x[k], hidden[k], *drawn[k * count : (k + 1) * count]]) for k in range(len(x))]
    show_images(ax, rows, ["test", "known", *[""] * count], (), "inpainting: the right half redrawn")
