"""The command `sample`: draws from the checkpoint of any generative model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.reading import load_model
from zoo.cli.text import generate_texts
from zoo.errors import UserError
from zoo.files import refuse_existing, save_texts
from zoo.plotting.images import save_gif, save_npz, save_png
from zoo.plotting.samples import render_frames, render_samples
from zoo.seeding import sample_seeds

CHUNK = 1000  # samples drawn at a time, to bound the memory
ENDINGS = (".png", ".npz", ".gif", ".txt")
DEFAULT_N = 64  # images


def run_sample(args: Sequence[str]) -> None:
    """Parses the command line and prints what was written."""
    from zoo.cli.parser import OneLineParser

    parser = OneLineParser(prog="zoo sample", description="Draws samples from the checkpoint of a generative model.")
    parser.add_function_arguments(sample)
    print(sample(**parser.parse_args(list(args[1:])).as_dict()))


def sample(
    ckpt_path: str,
    out: str | None = None,
    n: int | None = None,
    seed: int = 0,
    labels: list[int] | None = None,
    per_class: bool = False,
    interpolate: int = 0,
    trajectory: str | None = None,
    frames: int = 60,
    steps: int | None = None,
    solver: str | None = None,
    guidance_scale: float | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    model: str | None = None,
) -> str:
    """Draws samples from a generative model and writes them to a file.

    Args:
        ckpt_path: path to the checkpoint.
        out: file to write (default: samples.png). The ending chooses the format: .png for a grid, .npz for raw samples
            (`arr_0`, uint8 (N, H, W, C); labels as `arr_1`), .gif for an animation of the model's trajectory. Text is
            shown while it is generated, and written only to a .txt file given here.
        n: number of samples (default: 64 images, 1 text); rows per class with `per_class`, pairs with `interpolate`.
        seed: random seed of the noise.
        labels: classes to draw from a conditional model, cycled through.
        per_class: draw `n` samples of each class, one class per row.
        interpolate: number of samples on the path between two latent vectors, one pair per row; 0 for none.
        trajectory: .gif file for an animation of the same samples along the model's trajectory.
        frames: number of frames of an animation.
        steps: number of solver steps of a diffusion model (default: the model's own).
        solver: solver of a diffusion model: euler, heun, dpmpp_2m, ipndm, deis, ancestral or predictor_corrector
            (default: the model's own).
        guidance_scale: weight w of classifier-free guidance for a conditional diffusion model, 0 for none (default:
            the model's own).
        prompt: beginning of the text of a language model.
        max_new_tokens: number of tokens to generate (default: 500).
        temperature: softmax temperature of a language model; 0 for greedy decoding.
        top_k: number of most probable tokens to sample from.
        top_p: cumulative probability of the most probable tokens to sample from (nucleus sampling).
        model: class of the model (default: the class that the checkpoint names).

    Returns:
        A sentence that says what was written.
    """
    path = Path(out or "samples.png")
    if path.suffix not in ENDINGS:
        raise UserError(f"--out {out} must end in one of {', '.join(ENDINGS)}")
    if n is not None and n < 1:
        raise UserError(f"--n is {n}; it must be at least 1")
    animation = Path(trajectory) if trajectory else None
    if animation is not None and animation.suffix != ".gif":
        raise UserError(f"--trajectory {trajectory} must end in .gif")
    if animation is not None and path.suffix == ".gif":
        raise UserError(
            f"--out {out} is an animation already: leave out --trajectory, or let --out end in .png or .npz"
        )
    for file in filter(None, (path if out else None, animation)):
        refuse_existing(file)
    network = load_model(ckpt_path, model)
    if not callable(getattr(network, "sample", None)):
        raise UserError(f"{ckpt_path} holds a {type(network).__name__}, which is not a generative model")
    image_options = {"steps": steps, "solver": solver, "guidance_scale": guidance_scale}
    text_options = {
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    options = _supported(network, image_options | text_options)
    if callable(getattr(network, "stream", None)):
        foreign = {"labels": labels, "per_class": per_class, "interpolate": interpolate, "trajectory": trajectory}
        return _sample_text(network, out, n or 1, seed, options, [name for name, given in foreign.items() if given])
    if path.suffix == ".txt":
        raise UserError(f"--out {out} is for text; let it end in .png, .npz or .gif")
    refuse_existing(path)
    n = n or DEFAULT_N
    classes, columns = _choose_labels(network, n, labels, per_class)
    count = n if classes is None else len(classes)
    generator = torch.Generator().manual_seed(seed)
    if classes is None and getattr(network, "conditional", False):
        classes = network.draw_labels(count, torch.Generator().manual_seed(seed))
    if interpolate:
        for name in [*options, *(["trajectory"] if animation else [])]:
            raise UserError(f"--{name} cannot be combined with --interpolate: leave one out")
        return _sample_interpolation(network, path, n, interpolate, classes, generator)
    if path.suffix == ".gif":
        if "steps" in options:
            raise UserError("--steps has no effect on an animation, which has --frames: leave it out")
        _animate(network, path, count, frames, classes, columns, seed, options)
        return f"an animation of {count} samples of {type(network).__name__} in {path}"
    samples = _draw_samples(network, count, classes, seed, options)
    if animation is not None:
        _animate(network, animation, count, frames, classes, columns, seed, options)
    if path.suffix == ".npz":
        save_npz(path, samples, classes)
    else:
        save_png(path, render_samples(samples, columns))
    also = f", an animation of them in {animation}" if animation else ""
    return f"{count} samples of {type(network).__name__} in {path}{also}"


def _sample_text(network: Any, out: str | None, n: int, seed: int, options: dict[str, Any], foreign: list[str]) -> str:
    """Generates text and prints it token by token; `foreign` names given options that have no meaning for text."""
    for name in foreign:
        raise UserError(f"--{name} has no effect on a {type(network).__name__}: leave it out")
    if out is not None and Path(out).suffix != ".txt":
        raise UserError(f"--out {out} is not a file for text; let it end in .txt, or leave it out")
    generator = torch.Generator().manual_seed(seed)
    text = generate_texts(network, n, generator, lambda piece: print(piece, end="", flush=True), options)
    print()
    written = f"{n} text{'s' if n > 1 else ''} of {type(network).__name__}"
    if out is None:
        return written
    save_texts(Path(out), [text])
    return f"{written} in {out}"


def _supported(network: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; raises a `UserError` for one that the model's `sample` does not take."""
    given = {name: value for name, value in given.items() if value is not None}
    known = inspect.signature(network.sample).parameters
    for name in given:
        if name not in known:
            raise UserError(f"--{name} has no effect on a {type(network).__name__}: leave it out")
    return given


def _draw_samples(network: Any, n: int, labels: Tensor | None, seed: int, options: dict[str, Any]) -> Tensor:
    """Samples (n, ...), drawn in chunks; with a seed per sample if the model supports it."""
    generator = torch.Generator().manual_seed(seed)
    seeds = sample_seeds(n, generator) if "seeds" in inspect.signature(network.sample).parameters else None
    parts = []
    for start in range(0, n, CHUNK):
        piece = slice(start, min(n, start + CHUNK))
        source = {"generator": generator} if seeds is None else {"seeds": seeds[piece]}
        chosen = None if labels is None else labels[piece]
        parts.append(network.sample(piece.stop - start, labels=chosen, **source, **options))
    return torch.cat(parts)


def _choose_labels(network: Any, n: int, labels: list[int] | None, per_class: bool) -> tuple[Tensor | None, int | None]:
    """Labels to draw, None for the model's own choice, and the number of columns of the grid."""
    if (labels is not None or per_class) and not getattr(network, "conditional", False):
        raise UserError(
            "the model was trained without labels, so it cannot draw by class: leave out --labels and --per_class"
        )
    if labels is not None:
        unknown = [label for label in labels if not 0 <= label < network.num_classes]
        if unknown or not labels:
            raise UserError(f"--labels {unknown} are not among the classes 0 to {network.num_classes - 1}")
    if per_class:
        chosen = torch.tensor(labels if labels is not None else list(range(network.num_classes)))
        return chosen.repeat_interleave(n), n
    if labels is None:
        return None, None
    return torch.tensor(labels).repeat(-(-n // len(labels)))[:n], None


def _sample_interpolation(
    network: Any, path: Path, rows: int, steps: int, labels: Tensor | None, generator: torch.Generator
) -> str:
    if not hasattr(network, "interpolate"):
        raise UserError(f"{type(network).__name__} has no latent vectors to interpolate between")
    if steps < 2:
        raise UserError(f"--interpolate is {steps}; it must be at least 2")
    if labels is not None and len(labels) != rows:
        raise UserError("--per_class cannot be combined with --interpolate: every row is one pair already")
    paths = network.interpolate(rows, steps, labels=labels, generator=generator)
    if path.suffix == ".gif":
        save_gif(path, render_frames(paths.transpose(0, 1)))
    elif path.suffix == ".npz":
        save_npz(path, paths.flatten(0, 1), None if labels is None else labels.repeat_interleave(steps))
    else:
        save_png(path, render_samples(paths.flatten(0, 1), columns=steps))
    return f"{rows} interpolations of {steps} steps in the latent space of {type(network).__name__} in {path}"


def _animate(
    network: Any,
    path: Path,
    n: int,
    frames: int,
    labels: Tensor | None,
    columns: int | None,
    seed: int,
    options: dict[str, Any],
) -> None:
    if not hasattr(network, "trajectory"):
        raise UserError(f"{type(network).__name__} has no trajectory to animate; let --out end in .png or .npz")
    if frames < 2:
        raise UserError(f"--frames is {frames}; it must be at least 2")
    known = inspect.signature(network.trajectory).parameters
    extra = {name: value for name, value in {**options, "frames": frames}.items() if name in known}
    generator = torch.Generator().manual_seed(seed)
    source = {"seeds": sample_seeds(n, generator)} if "seeds" in known else {"generator": generator}
    states = network.trajectory(n, labels=labels, **source, **extra)
    save_gif(path, render_frames(states, columns))
