"""The command `edit`: changes an image with a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.cli.options import CKPT_HELP, MODEL_HELP, add_function_options, name_checkpoint
from zoo.cli.own_networks import load_model_with_config
from zoo.cli.program import program
from zoo.cli.sample import check_memory
from zoo.errors import UserError, check_at_least, check_choice, check_seed
from zoo.files import check_output, output_path
from zoo.hub.loading import find_device
from zoo.models.base import eval_mode
from zoo.models.diffusion.editing import enlarge, inpaint, interpolate, invert, super_resolve, vary
from zoo.models.diffusion.module import Diffusion
from zoo.models.diffusion.solvers import Denoise, karras_sigmas, solve, state_dtype
from zoo.models.generative import check_samples
from zoo.pictures.decoding import decoding, describe_error, flatten_image, open_image
from zoo.plotting.images import RGBImage, image_grid, save_png, to_uint8
from zoo.seeding import SampleNoise, sample_seeds

DESCRIPTION = "Edits an image with the checkpoint of a diffusion model."
# Options without a default, by the task that takes them.
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


def run_edit(args: Sequence[str]) -> None:
    """Parses the command line and prints what was written."""
    from zoo.cli.parser import OneLineParser

    parser = OneLineParser(prog=f"{program()} edit", description=DESCRIPTION)
    parser.add_argument("--ckpt_path", type=str, help=CKPT_HELP)
    parser.add_argument("--model", type=str, help=MODEL_HELP)
    add_function_options(parser, edit, {"ckpt_path"})
    given = parser.parse_args(name_checkpoint(args[1:])).as_dict()
    del given["model"]
    if not given["ckpt_path"]:
        raise UserError("--ckpt_path or --model must be given")
    try:
        print(edit(**given))
    except torch.OutOfMemoryError as error:
        raise UserError("the images do not fit into the memory of the device: give --device cpu, or less") from error


def edit(
    ckpt_path: str,
    image: str,
    task: Task | None = None,
    out: str | None = None,
    compare: str | None = None,
    overwrite: bool = False,
    mask: str | None = None,
    box: list[int] | None = None,
    other: str | None = None,
    sigma: float | None = None,
    label: int | None = None,
    to: int | None = None,
    guidance_scale: float | None = None,
    factor: int = 2,
    n: int = 1,
    steps: int = 40,
    resamples: int = 10,
    seed: int = 0,
    device: str = "auto",
    model_class: str | None = None,
    config: str | None = None,
) -> str:
    """Edits an image with a diffusion model and writes the result.

    Args:
        ckpt_path: path to the checkpoint, to the folder of its run, or to that of a saved model.
        image: input image; it is cropped and resized to the model's size and converted to its channels.
        task: kind of edit. inpaint: redraw the masked pixels (RePaint); the default with `mask` or `box`. vary: redraw
            details finer than the noise level `sigma` (SDEdit). class: change the image's class. interpolate: go from
            one image to another. invert: find the noise that generates the image, and generate it again. denoise:
            remove noise of the level `sigma`. super_resolve: draw an image that averages to the given one.
        out: .png file to write: the result in its own size, or a grid of several results (default: edited.png, with a
            number if it exists).
        compare: .png file for input and result side by side, enlarged.
        overwrite: replace files that exist.
        mask: mask image for inpaint, white where pixels are redrawn and black where they are kept; it is brought to the
            model's size as the image is.
        box: left, top, right and bottom of the area to redraw for inpaint, in the model's pixels, instead of a mask.
        other: second image for interpolate.
        sigma: noise level, in units of the pixel range [-1, 1]: strength of vary, noise in the image for denoise; for
            class, interpolate and invert the level up to which the image is inverted (default: the model's sigma_max).
        label: class of the image for a conditional model (default: no class).
        to: target class for the task class.
        guidance_scale: weight w of classifier-free guidance (default: the model's own).
        factor: factor by which the sides grow for super_resolve.
        n: number of results; for interpolate, number of images on the path.
        steps: number of noise levels.
        resamples: number of times that each step is repeated for inpaint and super_resolve.
        seed: random seed of the noise.
        device: device, such as cuda:1; auto is cuda where there is one, then mps, then the CPU. The noise is drawn on
            the CPU, so that results of one seed are the same on every device up to rounding.
        model_class: class of the model (default: the class that the checkpoint names).
        config: config.yaml of the run, for a model with a network of your own, which is imported from where it says.

    Returns:
        A sentence that says what was written.
    """
    if task is None:
        if mask is None and box is None:
            raise UserError(f"--task is missing; choose one of {', '.join(TASKS)}, or give --mask or --box to inpaint")
        task = "inpaint"
    check_choice("task", task, TASKS)
    paths = [output_path(out, "edited.png", overwrite)]
    if compare is not None:
        paths.append(check_output(Path(compare), overwrite))
    if len(set(paths)) != len(paths):
        raise UserError(f"--out and --compare are both {compare}; give two names")
    for name, given in {"mask": mask, "box": box, "other": other, "sigma": sigma, "to": to}.items():
        if given is not None and name not in TASKS[task]:
            raise UserError(f"--{name} has no effect on the task {task}: leave it out")
    if n > 1 and task in ("class", "invert"):
        raise UserError(f"the task {task} has one result: leave out --n")
    for path in paths:
        if path.suffix != ".png":
            raise UserError(f"{path} must end in .png")
    check_at_least(1, **{"--n": n, "--steps": steps, "--resamples": resamples, "--factor": factor})
    check_seed(**{"--seed": seed})
    target = find_device(device, "--device")
    network = load_model_with_config(ckpt_path, model_class, config)
    if not isinstance(network, Diffusion):
        raise UserError(f"{ckpt_path} holds a {type(network).__name__}; edit needs a diffusion model")
    if len(network.input_shape) != 3:
        raise UserError(f"{ckpt_path} is a model of points, not of images: there is nothing to edit")
    for name, number in {"label": label, "to": to}.items():
        if number is not None and not network.conditional:
            raise UserError(f"the model was trained without labels: leave out --{name}")
        if number is not None and not 0 <= number < network.num_classes:
            raise UserError(f"--{name} {number} is not among the classes 0 to {network.num_classes - 1}")
    guidance_scale = network.guidance_scale if guidance_scale is None else guidance_scale
    network.check_guidance(guidance_scale)
    check_memory(network, {"--n": n})
    session = EditSession(network.to(target), image, n, steps, seed, label, guidance_scale, sigma)
    with eval_mode(network):
        if task == "inpaint":
            result = session.inpaint(session.pixels_to_redraw(mask, box), resamples)
        elif task == "class":
            result = session.change_class(_required(to, "to", task))
        elif task == "interpolate":
            result = session.interpolate(_required(other, "other", task))
        elif task == "super_resolve":
            result = session.super_resolve(factor, resamples)
        else:
            result = {"vary": session.vary, "invert": session.invert, "denoise": session.denoise}[task]()
    after, before = result.after.cpu(), [image.cpu() for image in result.before]
    check_samples(after, type(network).__name__)
    if len(after) == 1:
        save_png(paths[0], _single(after), overwrite)
    else:
        save_png(paths[0], image_grid(after.float()), overwrite)
    if compare is not None:
        images = torch.cat([image.float() for image in (*before, after)])
        save_png(paths[1], image_grid(images, columns=len(images)), overwrite)
    return f"{result.description} in {' and '.join(map(str, paths))}"


@dataclass
class EditResult:
    """Input and result of an edit.

    Attributes:
        before: images that were given, each (1, C, H, W).
        after: results, (N, C, H, W).
        description: one line about the edit.
    """

    before: list[Tensor]
    after: Tensor
    description: str


class EditSession:
    """An image, a diffusion model, and the settings that all tasks share.

    Args:
        model: diffusion model of images.
        image: path to the image.
        n: number of results.
        steps: number of noise levels.
        seed: random seed of the noise.
        label: class of the image, or None.
        guidance_scale: weight of classifier-free guidance.
        sigma: noise level; its meaning depends on the task.
    """

    def __init__(
        self,
        model: Diffusion,
        image: str,
        n: int,
        steps: int,
        seed: int,
        label: int | None,
        guidance_scale: float,
        sigma: float | None,
    ) -> None:
        self.model, self.path, self.n, self.steps, self.label = model, image, n, steps, label
        self.guidance_scale, self.sigma = guidance_scale, sigma
        if sigma is not None and not sigma > model.sigma_min:
            raise UserError(f"--sigma is {sigma}; it must be above the model's sigma_min {model.sigma_min}")
        seeds = sample_seeds(n, torch.Generator().manual_seed(seed))
        self.noise = SampleNoise(seeds, model.input_shape, model.device, state_dtype(model.device))

    @property
    def image(self) -> Tensor:
        """The image, (1, C, H, W) in [-1, 1]."""
        return self._load(self.path, self.model.input_shape)

    def _load(self, path: str, shape: tuple[int, ...]) -> Tensor:
        """An image (1, *shape) on the model's device; see `load_image`."""
        return load_image(path, shape).to(self.model.device)

    def denoiser(self, label: int | None) -> Denoise:
        """Denoiser for a class, with guidance; without a class, the unconditional one."""
        if label is None:
            return self.model.guided()
        return lambda x, sigma: self.model.denoise(
            x, sigma, torch.full((len(x),), label, device=x.device), self.guidance_scale
        )

    def sigmas(self, sigma: float | None = None) -> list[float]:
        """Noise levels from `sigma`, but at most the model's highest, down to 0."""
        top = self.model.sigma_max if sigma is None else min(sigma, self.model.sigma_max)
        return karras_sigmas(self.steps, self.model.sigma_min, top)

    def initial_noise(self) -> Tensor:
        """Noise of the model's highest level, (n, C, H, W)."""
        return self.model.denoiser.mean + self.model.sigma_max * self.noise()

    def pixels_to_redraw(self, mask: str | None, box: list[int] | None) -> Tensor:
        """Mask (1, 1, H, W) on the CPU, true where the image is redrawn: the brighter half of the grey levels."""
        _, height, width = self.model.input_shape
        if (mask is None) == (box is None):
            raise UserError("the task inpaint needs either --mask or --box")
        if mask is not None:
            redrawn = load_image(mask, (1, height, width)) > 0
        else:
            left, top, right, bottom = box if box and len(box) == 4 else (0, 0, 0, 0)
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                size = f"{width}x{height} pixels"
                raise UserError(f"--box {box} is not a left, top, right and bottom within the model's images of {size}")
            redrawn = torch.zeros(1, 1, height, width, dtype=torch.bool)
            redrawn[:, :, top:bottom, left:right] = True
        if not redrawn.any():
            raise UserError(f"there is nothing to redraw: {mask} is black everywhere, and white is redrawn")
        return redrawn

    def inpaint(self, redrawn: Tensor, resamples: int) -> EditResult:
        x = self.image
        known = x.expand(self.n, -1, -1, -1)
        noise, denoise = self.initial_noise(), self.denoiser(self.label)
        share, redrawn = redrawn.float().mean().item(), redrawn.to(x.device)
        after = inpaint(denoise, noise, known, redrawn, self.sigmas(), self.noise, resamples)
        masked = torch.where(redrawn, torch.zeros_like(x), x)
        return EditResult([x, masked], after, f"{share:.1%} of the pixels of {self.path} redrawn")

    def vary(self) -> EditResult:
        sigma = _required(self.sigma, "sigma", "vary")
        x, denoise = self.image, self.denoiser(self.label)
        if sigma >= self.model.sigma_max:
            after = solve(denoise, self.initial_noise(), self.sigmas()).x
        else:
            after = vary(denoise, x.expand(self.n, -1, -1, -1), self.sigmas(sigma), self.noise)
        return EditResult([x], after, f"{self.path} redrawn below sigma {min(sigma, self.model.sigma_max):g}")

    def change_class(self, to: int) -> EditResult:
        x, sigmas = self.image, self.sigmas(self.sigma)
        noisy = invert(self.denoiser(self.label), x, sigmas)
        after = solve(self.denoiser(to), noisy, sigmas, "deis").x
        return EditResult([x], after, f"{self.path} as class {to}")

    def interpolate(self, other: str) -> EditResult:
        first, second = self.image, self._load(other, self.model.input_shape)
        if self.n < 3:
            raise UserError(f"--n is {self.n}; the path from one image to another needs at least 3")
        denoise, sigmas = self.denoiser(self.label), self.sigmas(self.sigma)
        path = interpolate(denoise, first, second, self.n, sigmas, self.model.denoiser.mean)
        return EditResult([first, second], path[:, 0], f"{self.n} images from {self.path} to {other}")

    def invert(self) -> EditResult:
        x, sigmas, denoise = self.image, self.sigmas(self.sigma), self.denoiser(self.label)
        noisy = invert(denoise, x, sigmas)
        after = solve(denoise, noisy, sigmas[:-1], "deis").x
        error = (after - x).square().mean().sqrt().item()
        mean, sigma_data = self.model.denoiser.mean, self.model.denoiser.sigma_data
        scaled = mean + (noisy - mean) * sigma_data / noisy.std()
        trip = f"{self.path} inverted to noise of sigma {sigmas[0]:g} and generated again"
        return EditResult([x, scaled], after, f"{trip} with a root mean square error of {error:.2g}")

    def denoise(self) -> EditResult:
        sigma = _required(self.sigma, "sigma", "denoise")
        x = self.image
        noisy = x.expand(self.n, -1, -1, -1)
        after = solve(self.denoiser(self.label), noisy, self.sigmas(sigma), "ancestral", self.noise).x
        return EditResult([x], after, f"{self.path} without noise of sigma {sigma:g}")

    def super_resolve(self, factor: int, resamples: int) -> EditResult:
        channels, *sides = self.model.input_shape
        if any(side % factor for side in sides):
            raise UserError(f"--factor {factor} does not divide the model's images of {sides[0]}x{sides[1]} pixels")
        small = self._load(self.path, (channels, *(side // factor for side in sides)))
        noise, denoise = self.initial_noise(), self.denoiser(self.label)
        after = super_resolve(denoise, noise, small, self.sigmas(), self.noise, resamples)
        size = f"{sides[0] // factor}x{sides[1] // factor}"
        return EditResult([enlarge(small, factor)], after, f"{self.path} of {size} pixels, {factor} times larger")


def load_image(path: str, shape: tuple[int, ...]) -> Tensor:
    """Reads an image of any size, crops it to the shape's aspect ratio around the center and resizes it.

    Args:
        path: image file.
        shape: (C, H, W), C is 1 or 3.

    Returns:
        (1, *shape) in [-1, 1].

    Raises:
        UserError: the file is missing or not a readable image.
    """
    channels, height, width = shape
    try:
        with decoding(), open_image(Path(path)) as file:
            image = flatten_image(file, channels)
    except Exception as error:  # Pillow raises errors of many types on damaged files
        raise UserError(f"{path} cannot be read: {describe_error(error)}") from error
    # By averages and not bicubic as in training: pixels that `sample` has enlarged are found again to the last bit.
    scale = min(image.width / width, image.height / height)
    crop = scale * width, scale * height
    left, top = (image.width - crop[0]) / 2, (image.height - crop[1]) / 2
    if image.size != (width, height):
        box = (left, top, left + crop[0], top + crop[1])
        image = image.resize((width, height), Image.Resampling.BOX, box)
    pixels = torch.from_numpy(np.array(image)).view(height, width, channels)
    return pixels.permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1


def _single(x: Tensor) -> RGBImage:
    """One image (1, C, H, W) in its own size, (H, W, 3)."""
    return np.broadcast_to(to_uint8(x)[0], (*x.shape[-2:], 3)).copy()


def _required(value: Any, name: str, task: str) -> Any:
    if value is None:
        raise UserError(f"the task {task} needs --{name}")
    return value
