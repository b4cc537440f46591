"""The command `sample`: draws from the checkpoint of any generative model.

The checkpoint is read first. The options are then those of every model, and the keyword arguments of the model's own
`sample`, `trajectory` and `interpolate`, or of its `stream` if it generates text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo._lightning import option_names
from zoo.cli.options import (
    CKPT_HELP,
    CONFIG_HELP,
    MODEL_CLASS_HELP,
    MODEL_HELP,
    add_function_options,
    add_options,
    name_checkpoint,
    parse_without_checkpoint,
    typed_options,
)
from zoo.cli.own_networks import load_model_with_config
from zoo.cli.parser import OneLineParser
from zoo.cli.program import program
from zoo.cli.text import sample_text
from zoo.contracts import PredictiveClassifier, SequenceMapping, offers
from zoo.datamodules.memory import check_fits
from zoo.errors import UserError, check_at_least, check_seed, nearest
from zoo.files import check_output, output_path
from zoo.hub.loading import find_device
from zoo.hub.method_options import Option, accepts, own_options, select_options
from zoo.models.generative import check_samples
from zoo.plotting.images import save_gif, save_npz, save_png
from zoo.plotting.samples import render_frames, render_samples
from zoo.seeding import sample_seeds

CHUNK = 1000  # samples drawn at a time, to bound the memory
BYTES_OF_CELL = 3500  # a small image or point in a picture
BYTES_OF_VALUE = 8  # a pixel as float32, on its way to a file
ENDINGS = (".png", ".npz", ".gif")
#: Arguments of a model's methods that the command fills in; their others are options.
CONTRACT = {
    "sample": ("n", "labels", "generator", "seeds"),
    "trajectory": ("n", "labels", "generator", "seeds"),
    "interpolate": ("rows", "steps", "labels", "generator", "seeds"),
    "stream": ("n", "labels", "generator", "seeds"),
}
#: Headings of a model's options in --help.
TITLES = {
    "sample": "Options of",
    "trajectory": "Options of an animation by",
    "interpolate": "Options of an interpolation by",
    "stream": "Options of",
}
#: Options of the command itself; a model's arguments of these names keep their defaults.
RESERVED = {
    "ckpt_path",
    "model",
    "model_class",
    "config",
    "help",
    "n",
    "seed",
    "out",
    "overwrite",
    "labels",
    "per_class",
    "interpolate",
    "trajectory",
    "device",
}
DESCRIPTION = "Draws samples from the checkpoint of a generative model."
MODEL_DECIDES = (
    f"{DESCRIPTION} These are the options for images; a model may have further ones, and a text model has others: "
    "--ckpt_path FILE --help, or --model NAME --help, lists the options of a model."
)


# Parsing


def run_sample(args: Sequence[str]) -> None:
    """Parses the command line, in two stages since the model decides on the options, and prints what was written."""
    words = name_checkpoint(args[1:])
    typed = typed_options(words)
    if not typed.get("ckpt_path"):
        parser = _start_parser(MODEL_DECIDES)
        add_function_options(parser, sample_images, {"network", "options"})
        parse_without_checkpoint(parser, words)
    if typed.get("device"):  # before a large file is read
        find_device(str(typed["device"]), "--device")
    network = _load_generative(str(typed["ckpt_path"]), typed.get("model_class"), typed.get("config"))
    own = _options_by_method(network)
    parser = _build_parser(network, own)
    _check_names(network, own, parser, typed)
    given = parser.parse_args(words).as_dict()
    for name in ("ckpt_path", "model", "model_class", "config"):
        del given[name]
    _check_numbers(given["n"], given["seed"])
    values = {option.name: given.pop(option.name) for option in _typeable(own)}
    options = {name: value for name, value in values.items() if name in typed}  # the model knows its defaults
    try:
        if _generates_text(network):
            print(sample_text(network, select_options(network, "stream", own["stream"], options), **given))
        else:
            print(sample_images(network, options, **given))
    except torch.OutOfMemoryError as error:
        raise UserError("the samples do not fit into the memory of the device: give --device cpu, or less") from error


def _load_generative(ckpt_path: str, model_class: str | None, config: str | None) -> Any:
    network = load_model_with_config(ckpt_path, model_class, config)
    if not any(callable(getattr(network, method, None)) for method in ("sample", "stream")):
        raise UserError(
            f"{ckpt_path} holds a {type(network).__name__}, which is not a generative model{_other_use(network)}"
        )
    return network


def _other_use(network: Any) -> str:
    """Command for a model that draws no samples; empty if there is none."""
    if offers(network, SequenceMapping):
        return "; it maps texts to texts: predict --texts"
    if offers(network, PredictiveClassifier) and len(network.input_shape) == 3:
        return "; it classifies pictures: predict --images"
    return ""


def _generates_text(network: Any) -> bool:
    return callable(getattr(network, "stream", None))


def _count_classes(network: Any) -> int:
    """Number of classes that can be drawn from, 0 for an unconditional model."""
    return getattr(network, "num_classes", 0) if getattr(network, "conditional", False) else 0


def _options_by_method(network: Any) -> dict[str, dict[str, Option]]:
    """The model's own options, by the method that takes them."""
    methods = ("stream",) if _generates_text(network) else ("sample", "trajectory", "interpolate")
    return {
        method: {
            name: option._replace(type=None) if name in RESERVED else option
            for name, option in own_options(type(network), method, CONTRACT[method]).items()
        }
        for method in methods
        if callable(getattr(network, method, None))
    }


def _typeable(own: dict[str, dict[str, Option]], *methods: str) -> list[Option]:
    """Options of all methods, or of some, that the parser has, each name once."""
    found: dict[str, Option] = {}
    for method in methods or own:
        for option in own[method].values():
            if option.type is not None:
                found.setdefault(option.name, option)
    return list(found.values())


def _start_parser(description: str) -> OneLineParser:
    parser = OneLineParser(prog=f"{program()} sample", description=description)
    parser.add_argument("--ckpt_path", type=str, help=CKPT_HELP)
    parser.add_argument("--model", type=str, help=MODEL_HELP)
    parser.add_argument("--model_class", type=str, help=MODEL_CLASS_HELP)
    parser.add_argument("--config", type=str, help=CONFIG_HELP)
    return parser


def _build_parser(network: Any, own: dict[str, dict[str, Option]]) -> OneLineParser:
    """Parser of the options that a model has."""
    name = type(network).__name__
    parser = _start_parser(DESCRIPTION)
    if _generates_text(network):
        add_function_options(parser, sample_text, {"network", "options"})
    else:
        absent = {method for method in ("interpolate", "trajectory") if method not in own}
        labels = set() if _count_classes(network) else {"labels", "per_class"}
        add_function_options(parser, sample_images, {"network", "options", *absent, *labels})
    added: set[str] = set()
    for method in own:
        new = [option for option in _typeable(own, method) if option.name not in added]
        added |= {option.name for option in new}
        if new:
            add_options(parser.add_argument_group(f"{TITLES[method]} {name}"), new)
    return parser


def _check_names(
    network: Any, own: dict[str, dict[str, Option]], parser: OneLineParser, typed: dict[str, str | None]
) -> None:
    """Raises a `UserError` for the first option that the model does not have."""
    model, known = type(network).__name__, option_names(parser)
    absent = {} if _generates_text(network) else {
        **dict.fromkeys(("labels", "per_class"), "the model was trained without labels, so it cannot draw by class"),
        "interpolate": f"{model} has no latent vectors to interpolate between",
        "trajectory": f"{model} has no trajectory to animate",
    }  # fmt: skip
    for name in typed:
        if f"--{name}" in known:
            continue
        if name in absent:
            raise UserError(f"{absent[name]}: leave out --{name}")
        if method := next((method for method, options in own.items() if name in options), None):
            raise UserError(f"--{name} cannot be given on the command line: leave it out, or call {model}.{method}")
        hint = nearest(f"--{name}", known, 0.75) or f": leave it out{_listed('; its own options are', _typeable(own))}"
        raise UserError(f"--{name} has no effect on a {model}{hint}")


def _listed(words: str, options: list[Option]) -> str:
    """Words and the names of the options, or an empty string if there are none."""
    return f"{words} {', '.join(f'--{option.name}' for option in options)}" if options else ""


def _check_numbers(n: int, seed: int) -> None:
    check_at_least(1, **{"--n": n})
    check_seed(**{"--seed": seed})


# Sampling


def sample_images(
    network: Any,
    options: dict[str, Any],
    n: int = 64,
    seed: int = 0,
    out: str | None = None,
    labels: list[int] | None = None,
    per_class: bool = False,
    interpolate: int = 0,
    trajectory: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> str:
    """Draws images or points and writes them to a file.

    Args:
        network: generative model.
        options: keyword arguments of its methods, as far as they are given.
        n: number of samples; rows per class with `per_class`, pairs with `interpolate`.
        seed: random seed of the noise.
        out: file to write. The ending chooses the format: .png for a grid, .npz for raw samples (`arr_0`, uint8
            (N, H, W, C); labels as `arr_1`), .gif for an animation of the model's trajectory (default: samples.png,
            with a number if it exists).
        labels: classes to draw from a conditional model, cycled through.
        per_class: draw `n` samples of each class of a conditional model, one class per row.
        interpolate: number of samples on the path between two latent vectors, one pair per row; 0 for none.
        trajectory: .gif file for an animation of the same samples along the model's trajectory.
        device: device, such as cuda:1; auto is cuda where there is one, then mps, then the CPU. The noise is drawn on
            the CPU, so that samples of one seed are the same on every device up to rounding.
        overwrite: replace files that exist.

    Returns:
        A sentence that says what was written.
    """
    target = find_device(device, "--device")
    path, animation = output_path(out, "samples.png", overwrite), Path(trajectory) if trajectory else None
    _check_files(path, animation, overwrite)
    if interpolate and animation is not None:
        raise UserError("--trajectory cannot be combined with --interpolate: leave one out")
    if interpolate:
        selected = _select_by_method(network, ["interpolate"], options)
    elif path.suffix == ".gif":
        selected = _select_by_method(network, ["trajectory"], options)
    else:
        selected = _select_by_method(network, ["sample", *(["trajectory"] if animation else [])], options)
    if interpolate:
        check_at_least(2, **{"--interpolate": interpolate})
    rows = max(1, _count_classes(network)) if per_class else 1
    numbers = {"--n": n * rows, "--interpolate": interpolate or 1, "--frames": options.get("frames", 1)}
    check_memory(network, numbers)
    network.to(target)
    classes, columns = _choose_labels(network, n, labels, per_class)
    count = n if classes is None else len(classes)
    if classes is None and _count_classes(network) and hasattr(network, "draw_labels"):
        classes = network.draw_labels(sample_seeds(count, torch.Generator().manual_seed(seed)))
    classes = None if classes is None else classes.to(target)
    if interpolate:
        return _sample_interpolation(network, path, n, interpolate, classes, seed, selected["interpolate"], overwrite)
    if path.suffix == ".gif":
        _animate(network, path, count, classes, columns, seed, selected["trajectory"], overwrite)
        return f"an animation of {count} samples of {type(network).__name__} in {path}"
    samples = _draw_samples(network, count, classes, seed, selected["sample"])
    if animation is not None:
        _animate(network, animation, count, classes, columns, seed, selected["trajectory"], overwrite)
    if path.suffix == ".npz":
        save_npz(path, samples, classes, overwrite)
    else:
        save_png(path, render_samples(samples, columns), overwrite)
    also = f", an animation of them in {animation}" if animation else ""
    return f"{count} samples of {type(network).__name__} in {path}{also}"


def _check_files(path: Path, animation: Path | None, overwrite: bool) -> None:
    """Raises a `UserError` if a file has another ending, or the animation cannot be written."""
    if path.suffix == ".txt":
        raise UserError(f"--out {path} is for text; let it end in .png, .npz or .gif")
    if path.suffix not in ENDINGS:
        raise UserError(f"--out {path} must end in one of {', '.join(ENDINGS)}")
    if animation is not None and animation.suffix != ".gif":
        raise UserError(f"--trajectory {animation} must end in .gif")
    if animation is not None and path.suffix == ".gif":
        raise UserError(
            f"--out {path} is an animation already: leave out --trajectory, or let --out end in .png or .npz"
        )
    if animation is not None:
        check_output(animation, overwrite)


def check_memory(network: Any, numbers: Mapping[str, int]) -> None:
    """Raises a `UserError` if samples, and the picture of them, do not fit into the memory.

    Args:
        network: generative model.
        numbers: numbers whose product is that of the samples, by the options that give them.
    """
    count = math.prod(numbers.values())
    size = max(BYTES_OF_CELL, BYTES_OF_VALUE * math.prod(getattr(network, "input_shape", ())))
    given = " or ".join(name for name, number in numbers.items() if number > 1)
    check_fits(count * size, f"drawing {count} samples", f"make {given} smaller")


def _select_by_method(network: Any, methods: list[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each method that is called; raises a `UserError` for one that none of them takes."""
    own = _options_by_method(network)
    if "trajectory" in methods and "trajectory" not in own:
        raise UserError(f"{type(network).__name__} has no trajectory to animate; let --out end in .png or .npz")
    frames = options.get("frames")
    if "trajectory" in methods and isinstance(frames, int) and frames < 2:
        raise UserError(f"--frames is {frames}; it must be at least 2")
    selected = {method: select_options(network, method, own[method], options) for method in methods}
    for name in options:
        if any(name in taken for taken in selected.values()):
            continue
        if methods == ["interpolate"]:
            raise UserError(f"--{name} cannot be combined with --interpolate: leave one out")
        if methods == ["trajectory"]:
            which = _listed(", which has", _typeable(own, "trajectory"))
            raise UserError(f"--{name} has no effect on an animation{which}: leave it out")
        if name in own.get("trajectory", {}):
            raise UserError(f"--{name} has no effect without an animation: give --trajectory, or let --out end in .gif")
        raise UserError(f"--{name} has no effect without --interpolate: leave it out")
    return selected


def _draw_samples(network: Any, n: int, labels: Tensor | None, seed: int, options: dict[str, Any]) -> Tensor:
    """Samples (n, ...), drawn in chunks; with a seed per sample if the model supports it."""
    generator = torch.Generator().manual_seed(seed)
    seeds = sample_seeds(n, generator) if accepts(type(network), "sample", "seeds") else None
    parts = []
    for start in range(0, n, CHUNK):
        piece = slice(start, min(n, start + CHUNK))
        source = {"generator": generator} if seeds is None else {"seeds": seeds[piece]}
        chosen = None if labels is None else labels[piece]
        parts.append(network.sample(piece.stop - start, labels=chosen, **source, **options).cpu())
    samples = torch.cat(parts)
    check_samples(samples, type(network).__name__)
    return samples


def _choose_labels(network: Any, n: int, labels: list[int] | None, per_class: bool) -> tuple[Tensor | None, int | None]:
    """Labels to draw, None for the model's own choice, and the number of columns of the grid."""
    num_classes = _count_classes(network)
    if labels is not None:
        unknown = [label for label in labels if not 0 <= label < num_classes]
        if unknown or not labels:
            raise UserError(f"--labels {unknown} are not among the classes 0 to {num_classes - 1}")
    if per_class:
        chosen = torch.tensor(labels if labels is not None else list(range(num_classes)))
        return chosen.repeat_interleave(n), n
    if labels is None:
        return None, None
    return torch.tensor(labels).repeat(-(-n // len(labels)))[:n], None


def _sample_interpolation(
    network: Any,
    path: Path,
    rows: int,
    steps: int,
    labels: Tensor | None,
    seed: int,
    options: dict[str, Any],
    overwrite: bool,
) -> str:
    if labels is not None and len(labels) != rows:
        raise UserError("--per_class cannot be combined with --interpolate: every row is one pair already")
    source = _random_source(network, "interpolate", rows, seed)
    paths = network.interpolate(rows, steps, labels=labels, **source, **options).cpu()
    check_samples(paths, type(network).__name__)
    if path.suffix == ".gif":
        save_gif(path, render_frames(paths.transpose(0, 1)), overwrite=overwrite)
    elif path.suffix == ".npz":
        save_npz(path, paths.flatten(0, 1), None if labels is None else labels.repeat_interleave(steps), overwrite)
    else:
        save_png(path, render_samples(paths.flatten(0, 1), columns=steps), overwrite)
    return f"{rows} interpolations of {steps} steps in the latent space of {type(network).__name__} in {path}"


def _animate(
    network: Any,
    path: Path,
    n: int,
    labels: Tensor | None,
    columns: int | None,
    seed: int,
    options: dict[str, Any],
    overwrite: bool,
) -> None:
    states = network.trajectory(n, labels=labels, **_random_source(network, "trajectory", n, seed), **options).cpu()
    check_samples(states.transpose(0, 1), type(network).__name__)
    save_gif(path, render_frames(states, columns), overwrite=overwrite)


def _random_source(network: Any, method: str, n: int, seed: int) -> dict[str, Any]:
    """Argument for the random numbers of `n` samples: a seed for each if the method takes them, else a generator."""
    generator = torch.Generator().manual_seed(seed)
    if accepts(type(network), method, "seeds"):
        return {"seeds": sample_seeds(n, generator)}
    return {"generator": generator}
