"""Edits of an image by a diffusion model: what the command `edit` and the page of `play` do with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.errors import UserError
from zoo.models.diffusion.editing import enlarge, inpaint, interpolate, invert, super_resolve, vary
from zoo.models.diffusion.module import Diffusion
from zoo.models.diffusion.solvers import Denoise, karras_sigmas, solve, state_dtype
from zoo.pictures.decoding import decoding, describe_error, flatten_image, open_image
from zoo.seeding import SampleNoise, sample_seeds


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
        image: path to the image, or the image itself, (1, C, H, W) in [-1, 1].
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
        image: str | Tensor,
        n: int,
        steps: int,
        seed: int,
        label: int | None,
        guidance_scale: float,
        sigma: float | None,
    ) -> None:
        self.model, self.given, self.n, self.steps, self.label = model, image, n, steps, label
        self.path = image if isinstance(image, str) else "the image"
        self.guidance_scale, self.sigma = guidance_scale, sigma
        if sigma is not None and not sigma > model.sigma_min:
            raise UserError(f"--sigma is {sigma}; it must be above the model's sigma_min {model.sigma_min}")
        seeds = sample_seeds(n, torch.Generator().manual_seed(seed))
        self.noise = SampleNoise(seeds, model.input_shape, model.device, state_dtype(model.device))

    @property
    def image(self) -> Tensor:
        """The image, (1, C, H, W) in [-1, 1]."""
        if isinstance(self.given, Tensor):
            return self.given.to(self.model.device)
        return self._load(self.given, self.model.input_shape)

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
        sigma = required_option(self.sigma, "sigma", "vary")
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
        sigma = required_option(self.sigma, "sigma", "denoise")
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
    """Reads an image of any size; see `fit_image`.

    Args:
        path: image file.
        shape: (C, H, W), C is 1 or 3.

    Returns:
        (1, *shape) in [-1, 1].

    Raises:
        UserError: the file is missing or not a readable image.
    """
    try:
        with decoding(), open_image(Path(path)) as file:
            image = flatten_image(file, shape[0])
    except Exception as error:  # Pillow raises errors of many types on damaged files
        raise UserError(f"{path} cannot be read: {describe_error(error)}") from error
    return fit_image(image, shape)


def fit_image(image: Image.Image, shape: tuple[int, ...]) -> Tensor:
    """Crops an image of any size to the shape's aspect ratio around the center, and resizes it.

    Args:
        image: grey (mode L) for one channel, else RGB.
        shape: (C, H, W), C is 1 or 3.

    Returns:
        (1, *shape) in [-1, 1].
    """
    channels, height, width = shape
    # By averages and not bicubic as in training: pixels that `sample` has enlarged are found again to the last bit.
    scale = min(image.width / width, image.height / height)
    crop = scale * width, scale * height
    left, top = (image.width - crop[0]) / 2, (image.height - crop[1]) / 2
    if image.size != (width, height):
        box = (left, top, left + crop[0], top + crop[1])
        image = image.resize((width, height), Image.Resampling.BOX, box)
    pixels = torch.from_numpy(np.array(image)).view(height, width, channels)
    return pixels.permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1


def required_option(value: Any, name: str, task: str) -> Any:
    """The value of an option of a task; raises a `UserError` that names it if it is None."""
    if value is None:
        raise UserError(f"the task {task} needs --{name}")
    return value
