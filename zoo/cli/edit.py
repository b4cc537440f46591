"""The command `edit`: changes an image with a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoo.cli.options import CKPT_HELP, MODEL_HELP, add_function_options, name_checkpoint
from zoo.cli.own_networks import load_model_with_config
from zoo.cli.program import program
from zoo.cli.sample import check_memory
from zoo.errors import UserError, check_at_least, check_choice, check_seed
from zoo.files import check_output, output_path
from zoo.hub.editing import EditSession, required_option
from zoo.hub.loading import find_device
from zoo.models.base import eval_mode
from zoo.models.diffusion.module import Diffusion
from zoo.models.generative import check_samples
from zoo.plotting.images import RGBImage, image_grid, save_png, to_uint8

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
            result = session.change_class(required_option(to, "to", task))
        elif task == "interpolate":
            result = session.interpolate(required_option(other, "other", task))
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


def _single(x: Tensor) -> RGBImage:
    """One image (1, C, H, W) in its own size, (H, W, 3)."""
    return np.broadcast_to(to_uint8(x)[0], (*x.shape[-2:], 3)).copy()
