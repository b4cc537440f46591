"""Drawing from a checkpoint, whatever generative model it holds: the command `sample`, as a function."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import load_model
from zoo.errors import UserError
from zoo.generative import sample_seeds
from zoo.pictures import film_of, picture_of, refuse_existing, save_gif, save_npz, save_png
from zoo.writing import save_texts, write_texts

CHUNK = 1000  # samples drawn at a time, which bounds the memory
ENDINGS = (".png", ".npz", ".gif", ".txt")
PICTURES = 64  # drawn where no number is given


def draw(
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
    guidance: float | None = None,
    prompt: str | None = None,
    length: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    model: str | None = None,
) -> str:
    """Draws samples from a generative model and writes them.

    Args:
        ckpt_path: the checkpoint.
        out: the file to write, samples.png where it is not given; its ending chooses the form: .png a grid, .npz the
            raw samples (`arr_0`, uint8 (N, H, W, C); labels as `arr_1`), .gif a film of the samples on their
            trajectory. Text is shown as it is written, and goes to a .txt if one is given.
        n: number of samples, 64 where it is not given, of text 1; rows of samples with `per_class`, pairs with
            `interpolate`.
        seed: of the noise.
        labels: classes to draw, in turn, from a conditional model.
        per_class: one class in each row, `n` samples of each.
        interpolate: this many steps on the way between two latent vectors, one pair in each row.
        trajectory: a .gif to write beside `out`, a film of the same samples on their trajectory.
        frames: of a film.
        steps: of a diffusion model's solver; the model's own where it is not given, as for the next two.
        solver: of a diffusion model: euler, heun, dpmpp_2m, ipndm, deis, ancestral or predictor_corrector.
        guidance: w of a conditional diffusion model's classifier-free guidance, 0 for none.
        prompt: what a language model's text begins with.
        length: of text, in tokens.
        temperature: of text: above 1 for bolder, below 1 for safer, 0 for the likeliest token always.
        top_k: draw text from so many of the likeliest tokens.
        top_p: draw text from the fewest of the likeliest tokens that have this probability together.
        model: class of the model; what the checkpoint says where it is not given.

    Returns:
        What was written, in a sentence.
    """
    path = Path(out or "samples.png")
    if path.suffix not in ENDINGS:
        raise UserError(f"--out {out} must end in one of {', '.join(ENDINGS)}")
    if n is not None and n < 1:
        raise UserError(f"--n is {n}; it must be at least 1")
    film = Path(trajectory) if trajectory else None
    if film is not None and film.suffix != ".gif":
        raise UserError(f"--trajectory {trajectory} must end in .gif")
    if film is not None and path.suffix == ".gif":
        raise UserError(f"--out {out} is a film already: leave out --trajectory, or let --out end in .png or .npz")
    for file in filter(None, (path if out else None, film)):
        refuse_existing(file)
    network = load_model(ckpt_path, model)
    if not callable(getattr(network, "sample", None)):
        raise UserError(f"{ckpt_path} holds a {type(network).__name__}, which does not generate anything")
    drawing = {"steps": steps, "solver": solver, "guidance": guidance}
    writing = {"prompt": prompt, "length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    options = _options(network, drawing | writing)
    if callable(getattr(network, "stream", None)):
        pictorial = {"labels": labels, "per_class": per_class, "interpolate": interpolate, "trajectory": trajectory}
        return _write(network, out, n or 1, seed, options, [name for name, given in pictorial.items() if given])
    if path.suffix == ".txt":
        raise UserError(f"--out {out} is for text; let it end in .png, .npz or .gif")
    refuse_existing(path)
    n = n or PICTURES
    classes, columns = _choose_labels(network, n, labels, per_class)
    count = n if classes is None else len(classes)
    generator = torch.Generator().manual_seed(seed)
    if classes is None and getattr(network, "conditional", False):
        classes = network.draw_labels(count, torch.Generator().manual_seed(seed))
    if interpolate:
        for name in [*options, *(["trajectory"] if film else [])]:
            raise UserError(f"--{name} and --interpolate do not go together: leave one out")
        return _draw_interpolation(network, path, n, interpolate, classes, generator)
    if path.suffix == ".gif":
        if "steps" in options:
            raise UserError("--steps says nothing to a film, which has as many as --frames: leave it out")
        _draw_film(network, path, count, frames, classes, columns, seed, options)
        return f"a film of {count} samples of {type(network).__name__} in {path}"
    samples = _draw_samples(network, count, classes, seed, options)
    if film is not None:
        _draw_film(network, film, count, frames, classes, columns, seed, options)
    if path.suffix == ".npz":
        save_npz(path, samples, classes)
    else:
        save_png(path, picture_of(samples, columns))
    return f"{count} samples of {type(network).__name__} in {path}" + (f", a film of them in {film}" if film else "")


def _write(network: Any, out: str | None, n: int, seed: int, options: dict[str, Any], of_no_use: list[str]) -> str:
    """Text, shown as it is written."""
    for name in of_no_use:
        raise UserError(f"--{name} says nothing to a {type(network).__name__}: leave it out")
    if out is not None and Path(out).suffix != ".txt":
        raise UserError(f"--out {out} is no place for text; let it end in .txt, or leave it out")
    generator = torch.Generator().manual_seed(seed)
    text = write_texts(network, n, generator, lambda piece: print(piece, end="", flush=True), options)
    print()
    if out is None:
        return f"{n} text{'s' if n > 1 else ''} of {type(network).__name__}"
    save_texts(Path(out), [text])
    return f"{n} text{'s' if n > 1 else ''} of {type(network).__name__} in {out}"


def _options(network: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those that were given, if the model has them."""
    given = {name: value for name, value in given.items() if value is not None}
    known = inspect.signature(network.sample).parameters
    for name in given:
        if name not in known:
            raise UserError(f"--{name} says nothing to a {type(network).__name__}: leave it out")
    return given


def _draw_samples(network: Any, n: int, labels: Tensor | None, seed: int, options: dict[str, Any]) -> Tensor:
    """Samples (n, ...), a limited number at a time; where the model can, each has noise of its own seed."""
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
    """The labels to draw, None for the model's own choice, and the number of columns that shows them best."""
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


def _draw_interpolation(
    network: Any, path: Path, rows: int, steps: int, labels: Tensor | None, generator: torch.Generator
) -> str:
    if not hasattr(network, "interpolate"):
        raise UserError(f"{type(network).__name__} has no latent vectors to interpolate between")
    if steps < 2:
        raise UserError(f"--interpolate is {steps}; a way needs at least 2 steps")
    if labels is not None and len(labels) != rows:
        raise UserError("--per_class and --interpolate do not go together: every row is one pair already")
    ways = network.interpolate(rows, steps, labels=labels, generator=generator)
    if path.suffix == ".gif":
        save_gif(path, film_of(ways.transpose(0, 1)))
    elif path.suffix == ".npz":
        save_npz(path, ways.flatten(0, 1), None if labels is None else labels.repeat_interleave(steps))
    else:
        save_png(path, picture_of(ways.flatten(0, 1), columns=steps))
    return f"{rows} ways of {steps} steps through the latent space of {type(network).__name__} in {path}"


def _draw_film(
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
        raise UserError(f"{type(network).__name__} has no trajectory to make a film of; let --out end in .png or .npz")
    if frames < 2:
        raise UserError(f"--frames is {frames}; a film needs at least 2")
    known = inspect.signature(network.trajectory).parameters
    extra = {name: value for name, value in {**options, "frames": frames}.items() if name in known}
    generator = torch.Generator().manual_seed(seed)
    source = {"seeds": sample_seeds(n, generator)} if "seeds" in known else {"generator": generator}
    film = network.trajectory(n, labels=labels, **source, **extra)
    save_gif(path, film_of(film, columns))
