"""Changing a picture by a diffusion model: the command `edit`, as a function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from zoo.base import evaluating
from zoo.checkpoints import load_model
from zoo.diffusion import Diffusion, noise_levels, solve
from zoo.diffusion.editing import enlarge, inpaint, interpolate, invert, super_resolve, vary
from zoo.diffusion.samplers import Denoise, SampleNoise
from zoo.errors import UserError, check_choice
from zoo.generative import sample_seeds
from zoo.pictures import grid, refuse_existing, save_png, to_uint8

# What each task does with the options that have no default.
TASKS = {
    "inpaint": ("mask", "box"),
    "vary": ("sigma",),
    "class": ("to", "sigma"),
    "interpolate": ("other", "sigma"),
    "invert": ("sigma",),
    "denoise": ("sigma",),
    "super_resolve": (),
}
Task = Literal["inpaint", "vary", "class", "interpolate", "invert", "denoise", "super_resolve"]


def edit(
    ckpt_path: str,
    task: Task,
    image: str,
    out: str = "edited.png",
    compare: str | None = None,
    mask: str | None = None,
    box: list[int] | None = None,
    other: str | None = None,
    sigma: float | None = None,
    label: int | None = None,
    to: int | None = None,
    guidance: float | None = None,
    factor: int = 2,
    n: int = 1,
    steps: int = 40,
    resamples: int = 10,
    seed: int = 0,
    model: str | None = None,
) -> str:
    """Changes a picture by a diffusion model and writes what comes of it.

    Args:
        ckpt_path: the model's checkpoint.
        task: inpaint fills in what the mask leaves out; vary redraws what is finer than `sigma` (SDEdit); class makes
            another class of it; interpolate goes from the picture to another one; invert finds the noise that it comes
            from, and draws it again from there; denoise takes off noise of the strength `sigma`; super_resolve draws a
            picture of which the given one is the shrunk one.
        image: the picture. It is brought to the model's size and number of channels.
        out: the .png to write: the result in its own size, or a grid of several.
        compare: a .png to write beside it: before and after, side by side and enlarged.
        mask: for inpaint, a picture that is white where pixels are to be kept and black where they are to be drawn.
        box: for inpaint, in place of a mask: left, top, right and bottom of what is to be drawn, in the model's pixels.
        other: for interpolate, the picture at the other end.
        sigma: noise level up to which the picture is taken, in units of its range of [-1, 1]. For vary it is the
            strength, at the model's sigma_max nothing is left of the picture; for denoise that of the noise which is in
            it; for class, interpolate and invert the model's sigma_max where it is not given.
        label: the picture's class, for a conditional model; none where it is not given.
        to: for class, the class that it is to become.
        guidance: w of classifier-free guidance; the model's own where it is not given.
        factor: for super_resolve, by how much the sides grow.
        n: how many results are drawn; for interpolate, pictures on the way.
        steps: noise levels.
        resamples: for inpaint and super_resolve, times that each step is taken.
        seed: of the noise.
        model: class of the model; what the checkpoint says where it is not given.

    Returns:
        What was written, in a sentence.
    """
    check_choice("task", task, TASKS)
    paths = [Path(name) for name in (out, compare) if name is not None]
    if len(set(paths)) != len(paths):
        raise UserError(f"--out and --compare are both {out}; give two names")
    for name, given in {"mask": mask, "box": box, "other": other, "sigma": sigma, "to": to}.items():
        if given is not None and name not in TASKS[task]:
            raise UserError(f"--{name} says nothing to the task {task}: leave it out")
    if n > 1 and task in ("class", "invert"):
        raise UserError(f"the task {task} has one result: leave out --n")
    for path in paths:
        if path.suffix != ".png":
            raise UserError(f"{path} must end in .png")
        refuse_existing(path)
    for name, value in {"n": n, "steps": steps, "resamples": resamples, "factor": factor}.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    network = load_model(ckpt_path, model)
    if not isinstance(network, Diffusion):
        raise UserError(f"{ckpt_path} holds a {type(network).__name__}; edit needs a diffusion model")
    if len(network.input_shape) != 3:
        raise UserError(f"{ckpt_path} draws points, not pictures: there is nothing to edit")
    for name, number in {"label": label, "to": to}.items():
        if number is not None and not network.conditional:
            raise UserError(f"the model was trained without labels: leave out --{name}")
        if number is not None and not 0 <= number < network.num_classes:
            raise UserError(f"--{name} {number} is not among the classes 0 to {network.num_classes - 1}")
    guidance = network.guidance if guidance is None else guidance
    network.check_guidance(guidance)
    work = Work(network, image, n, steps, seed, label, guidance, sigma)
    with evaluating(network):
        if task == "inpaint":
            done = work.inpaint(work.pixels_to_keep(mask, box), resamples)
        elif task == "class":
            done = work.change_class(_required(to, "to", task))
        elif task == "interpolate":
            done = work.interpolate(_required(other, "other", task))
        elif task == "super_resolve":
            done = work.super_resolve(factor, resamples)
        else:
            done = {"vary": work.vary, "invert": work.invert, "denoise": work.denoise}[task]()
    if len(done.after) == 1:
        save_png(paths[0], _plain(done.after))
    else:
        save_png(paths[0], grid(done.after.float()))
    if compare is not None:
        pictures = torch.cat([picture.float() for picture in (*done.before, done.after)])
        save_png(paths[1], grid(pictures, columns=len(pictures)))
    return f"{done.what} in {' and '.join(map(str, paths))}"


@dataclass
class Done:
    """What was made: the pictures that it was made from and the results, all (N, C, H, W), and a sentence."""

    before: list[Tensor]
    after: Tensor
    what: str


class Work:
    """One picture, the model, and what both need for any of the tasks."""

    def __init__(
        self,
        model: Diffusion,
        image: str,
        n: int,
        steps: int,
        seed: int,
        label: int | None,
        guidance: float,
        sigma: float | None,
    ) -> None:
        self.model, self.image, self.n, self.steps, self.label = model, image, n, steps, label
        self.guidance, self.sigma = guidance, sigma
        if sigma is not None and not sigma > model.sigma_min:
            raise UserError(f"--sigma is {sigma}; it must be above the model's sigma_min {model.sigma_min}")
        seeds = sample_seeds(n, torch.Generator().manual_seed(seed))
        self.noise = SampleNoise(seeds, model.input_shape, model.device)

    @property
    def picture(self) -> Tensor:
        return load_picture(self.image, self.model.input_shape)

    def denoiser(self, label: int | None) -> Denoise:
        """By a label, guided; without one, as the model knows pictures of any label."""
        if label is None:
            return self.model.denoiser()
        return lambda x, sigma: self.model.denoise(x, sigma, torch.full((len(x),), label), self.guidance)

    def levels(self, sigma: float | None = None) -> list[float]:
        """Noise levels from this one down, from the model's highest one where none is given or it is higher."""
        top = self.model.sigma_max if sigma is None else min(sigma, self.model.sigma_max)
        return noise_levels(self.steps, self.model.sigma_min, top)

    def start(self) -> Tensor:
        """Nothing but noise, of the highest level."""
        return self.model.mean + self.model.sigma_max * self.noise()

    def pixels_to_keep(self, mask: str | None, box: list[int] | None) -> Tensor:
        """True where the picture stays as it is, (1, 1, H, W)."""
        _, height, width = self.model.input_shape
        if (mask is None) == (box is None):
            raise UserError("the task inpaint needs --mask or --box, and one of them only")
        if mask is not None:
            keep = load_picture(mask, (1, height, width)) > 0
        else:
            left, top, right, bottom = box if box and len(box) == 4 else (0, 0, 0, 0)
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                size = f"{width}x{height} pixels"
                raise UserError(f"--box {box} is no left, top, right and bottom within the model's pictures of {size}")
            keep = torch.ones(1, 1, height, width, dtype=torch.bool)
            keep[:, :, top:bottom, left:right] = False
        if keep.all():
            raise UserError("nothing is to be drawn: the mask is white everywhere")
        return keep

    def inpaint(self, keep: Tensor, resamples: int) -> Done:
        x = self.picture
        known = x.expand(self.n, -1, -1, -1)
        after = inpaint(self.denoiser(self.label), self.start(), known, keep, self.levels(), self.noise, resamples)
        masked = torch.where(keep, x, torch.zeros_like(x))
        return Done([x, masked], after, f"{(~keep).sum()} pixels of {self.image} drawn anew")

    def vary(self) -> Done:
        sigma = _required(self.sigma, "sigma", "vary")
        x, denoise = self.picture, self.denoiser(self.label)
        if sigma >= self.model.sigma_max:
            after = solve(denoise, self.start(), self.levels()).x
        else:
            after = vary(denoise, x.expand(self.n, -1, -1, -1), self.levels(sigma), self.noise)
        return Done([x], after, f"{self.image} redrawn below sigma {min(sigma, self.model.sigma_max):g}")

    def change_class(self, to: int) -> Done:
        x, levels = self.picture, self.levels(self.sigma)
        noisy = invert(self.denoiser(self.label), x, levels)
        after = solve(self.denoiser(to), noisy, levels, "deis").x
        return Done([x], after, f"{self.image} as class {to}")

    def interpolate(self, other: str) -> Done:
        first, second = self.picture, load_picture(other, self.model.input_shape)
        if self.n < 3:
            raise UserError(f"--n is {self.n}; a way from one picture to another needs at least 3")
        ways = interpolate(self.denoiser(self.label), first, second, self.n, self.levels(self.sigma), self.model.mean)
        return Done([first, second], ways[:, 0], f"{self.n} pictures from {self.image} to {other}")

    def invert(self) -> Done:
        x, levels, denoise = self.picture, self.levels(self.sigma), self.denoiser(self.label)
        noisy = invert(denoise, x, levels)
        after = solve(denoise, noisy, levels[:-1], "deis").x
        error = (after - x).square().mean().sqrt().item()
        shrunk = self.model.mean + (noisy - self.model.mean) * self.model.sigma_data / noisy.std()
        return Done(
            [x, shrunk],
            after,
            f"{self.image} taken to noise of sigma {levels[0]:g} and back with a root mean square error of {error:.2g}",
        )

    def denoise(self) -> Done:
        sigma = _required(self.sigma, "sigma", "denoise")
        x = self.picture
        noisy = x.expand(self.n, -1, -1, -1)
        after = solve(self.denoiser(self.label), noisy, self.levels(sigma), "ancestral", self.noise).x
        return Done([x], after, f"{self.image} without noise of sigma {sigma:g}")

    def super_resolve(self, factor: int, resamples: int) -> Done:
        channels, *sides = self.model.input_shape
        if any(side % factor for side in sides):
            raise UserError(f"--factor {factor} does not divide the model's pictures of {sides[0]}x{sides[1]} pixels")
        small = load_picture(self.image, (channels, *(side // factor for side in sides)))
        after = super_resolve(self.denoiser(self.label), self.start(), small, self.levels(), self.noise, resamples)
        return Done(
            [enlarge(small, factor)],
            after,
            f"{self.image} of {sides[0] // factor}x{sides[1] // factor} pixels, {factor} times larger",
        )


def load_picture(path: str, shape: tuple[int, ...]) -> Tensor:
    """A picture of any size as (1, *shape) in [-1, 1], cut to the shape's proportions and averaged down to its size.

    Raises:
        UserError: there is no picture that can be read.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a picture that can be read") from error
    scale = min(picture.width / width, picture.height / height)
    cut = scale * width, scale * height
    left, top = (picture.width - cut[0]) / 2, (picture.height - cut[1]) / 2
    if picture.size != (width, height):
        box = (left, top, left + cut[0], top + cut[1])
        picture = picture.resize((width, height), Image.Resampling.BOX, box)
    pixels = torch.from_numpy(np.array(picture)).view(height, width, channels)
    return pixels.permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1


def _plain(x: Tensor) -> Any:
    """One picture (1, C, H, W) as it is, (H, W, 3)."""
    return np.broadcast_to(to_uint8(x)[0], (*x.shape[-2:], 3)).copy()


def _required(value: Any, name: str, task: str) -> Any:
    if value is None:
        raise UserError(f"the task {task} needs --{name}")
    return value
