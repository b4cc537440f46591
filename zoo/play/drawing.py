"""Samples of a generative model as pictures: a grid, the way from one to another, and the film of one.

The same seed gives the samples that the command `sample` draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.contracts import Interpolating, accepts, is_conditional
from zoo.errors import UserError, check_at_least, check_at_most, check_fraction, check_seed
from zoo.models.generative import check_samples, slerp
from zoo.play.cost import measured
from zoo.plotting.images import RGBImage, image_grid
from zoo.plotting.points import plot_points
from zoo.seeding import sample_seeds

#: Arguments of a model's methods that the page fills in; its others are fields.
CONTRACT = ("n", "labels", "generator", "seeds", "rows", "frames")
MOST_SAMPLES = 100  # at once
MOST_POINTS = 5000
MOST_FRAMES = 200
SIDE = 512  # pixels of a picture, about
ANY_CLASS = "any class"
EACH_CLASS = "each class"


class Drawn(NamedTuple):
    """A picture of samples.

    Attributes:
        picture: uint8 (height, width, 3).
        description: number of samples, and what they cost.
    """

    picture: RGBImage
    description: str


def class_names(model: Any) -> list[str]:
    """Names of the classes that can be drawn from; empty for an unconditional model."""
    if not is_conditional(model):
        return []
    return known_names(model, model.num_classes)


def known_names(model: Any, count: int) -> list[str]:
    """Names of the classes of a model's training data; their numbers if they have none, or there are others."""
    names = getattr(getattr(model, "trained_on", None), "class_names", None) or ()
    return list(names) if len(names) == count else [str(index) for index in range(count)]


def most_samples(model: Any) -> int:
    """Number of samples that can be drawn at once."""
    return MOST_SAMPLES if _draws_images(model) else MOST_POINTS


def draw(model: Any, n: int, seed: int, label: str = ANY_CLASS, options: Mapping[str, Any] | None = None) -> Drawn:
    """Draws samples.

    Args:
        model: generative model of images or points.
        n: number of samples; of each class with `EACH_CLASS`.
        seed: random seed.
        label: name of a class, `ANY_CLASS` or `EACH_CLASS`.
        options: further keyword arguments of the model's `sample`.

    Raises:
        UserError: a number is out of range, or there is no such class.
    """
    check_seed(seed=seed)
    check_at_least(1, number=n)
    names = class_names(model)
    each = label == EACH_CLASS and bool(names)
    check_at_most(most_samples(model) // (len(names) if each else 1), number=n)
    labels = torch.arange(len(names)).repeat_interleave(n) if each else find_labels(model, label, n)
    count = n if labels is None else len(labels)
    with measured(model) as cost:
        samples = model.sample(count, labels=labels, **_source(model.sample, count, seed), **(options or {})).cpu()
    check_samples(samples, type(model).__name__)
    picture = picture_of(samples, n if each else None)
    return Drawn(picture, f"{count} sample{'' if count == 1 else 's'}: {cost}")


def wander(model: Any, first: int, second: int, weight: float, label: str = ANY_CLASS) -> Drawn:
    """Draws one sample between two others, on the great circle through their latent vectors.

    Args:
        model: model that offers `zoo.contracts.LatentSpace`.
        first: seed of the sample at weight 0.
        second: seed of the sample at weight 1.
        weight: position between them, in [0, 1].
        label: name of a class, or `ANY_CLASS` for that of the first seed.

    Raises:
        UserError: a seed or the weight is out of range, or there is no such class.
    """
    check_seed(first=first, second=second)
    if weight != 1:
        check_fraction(position=weight)
    seeds = torch.cat([sample_seeds(1, torch.Generator().manual_seed(seed)) for seed in (first, second)])
    labels = find_labels(model, label, 1)
    if labels is None and hasattr(model, "draw_labels"):
        labels = model.draw_labels(seeds[:1])
    with measured(model) as cost:
        start, end = model.seeded_latents(seeds).unbind(0)
        samples = model.sample_latents(slerp(start, end, weight)[None], labels=labels).cpu()
    check_samples(samples, type(model).__name__)
    return Drawn(picture_of(samples), str(cost))


def film(
    model: Any, seed: int, frames: int, label: str = ANY_CLASS, options: Mapping[str, Any] | None = None
) -> list[RGBImage]:
    """The trajectory of one sample of images, or of many points, as pictures.

    Args:
        model: model that offers `zoo.contracts.Trajectories`.
        seed: random seed.
        frames: number of pictures, for a model whose `trajectory` takes it.
        label: name of a class, or `ANY_CLASS`.
        options: further keyword arguments of the model's `trajectory`.
    """
    check_seed(seed=seed)
    check_at_least(2, frames=frames)
    check_at_most(MOST_FRAMES, frames=frames)
    count = 1 if _draws_images(model) else 500
    method = model.trajectory
    number = {"frames": frames} if accepts(method, "frames") else {}
    labels = find_labels(model, label, count)
    states = method(count, labels=labels, **_source(method, count, seed), **number, **(options or {})).cpu()
    return _pictures(states, type(model).__name__)


def path(model: Interpolating, seed: int, steps: int, label: str = ANY_CLASS) -> list[RGBImage]:
    """Samples between a random pair of latent vectors, as pictures.

    Args:
        model: model that offers `zoo.contracts.Interpolating`.
        seed: random seed of the pair.
        steps: number of pictures.
        label: name of a class, or `ANY_CLASS`.
    """
    check_seed(seed=seed)
    check_at_least(2, frames=steps)
    check_at_most(MOST_FRAMES, frames=steps)
    labels = find_labels(model, label, 1)
    between = model.interpolate(1, steps, labels=labels, **_source(model.interpolate, 1, seed)).cpu()
    return _pictures(between.transpose(0, 1), type(model).__name__)


def picture_of(samples: Tensor, columns: int | None = None) -> RGBImage:
    """Images (N, C, H, W) as a grid of about `SIDE` pixels, or points (N, D) as a plot."""
    if samples.ndim != 4:
        return plot_points(samples)
    across = columns or max(1, round(len(samples) ** 0.5))
    return image_grid(samples, columns, cell=max(32, SIDE // across))


def find_labels(model: Any, label: str | None, n: int) -> Tensor | None:
    """Labels (n,) of a class by its name; None for an unconditional model, or if any class will do.

    Raises:
        UserError: there is no such class.
    """
    names = class_names(model)
    if not names or label in (None, ANY_CLASS):
        return None
    if label not in names:
        raise UserError(f"class is {label!r}; choose one of {', '.join(names)}")
    return torch.full((n,), names.index(label))


def _draws_images(model: Any) -> bool:
    return len(getattr(model, "input_shape", ())) == 3


def _source(method: Any, n: int, seed: int) -> dict[str, Any]:
    """Argument for the random numbers of `n` samples, as the command `sample` hands it over."""
    generator = torch.Generator().manual_seed(seed)
    return {"seeds": sample_seeds(n, generator)} if accepts(method, "seeds") else {"generator": generator}


def _pictures(states: Tensor, name: str) -> list[RGBImage]:
    """Pictures of states (frames, N, ...), points on the same axes."""
    check_samples(states, name)
    if states.ndim == 5:
        return [picture_of(state) for state in states]
    return [plot_points(state, within=states) for state in states]


def frame_at(frames: Sequence[RGBImage], position: float) -> RGBImage:
    """The picture at a position from 0, the first one, to 1, the last one."""
    return frames[round(position * (len(frames) - 1))]
