"""Options that several commands have, and those that are keyword arguments of a model's methods.

What the arguments of a method are is in `zoo.hub.method_options`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from zoo._lightning import option_names
from zoo.errors import UserError, nearest
from zoo.hub.method_options import Option

CKPT_HELP = "path to the checkpoint, to the folder of its run, or to that of a saved model."
MODEL_HELP = "name of a trained model of the zoo instead of --ckpt_path; `list models` names them."
MODEL_CLASS_HELP = "class of the model (default: the class that the checkpoint names)."
CONFIG_HELP = "config.yaml of the run, for a model with networks of your own, which are imported from where it says."
DEVICES_HELP = (
    "number of devices, list of their indices, or auto for all of the machine. If it is not given, a run with a "
    "trainer.strategy, or one of several processes under torchrun or SLURM, is on all of them."
)
DEVICE_HELP = "device, such as cuda:1; auto is cuda where there is one, then mps, then the CPU."
OUT_HELP = "table to write, .csv or .parquet (default: predictions.csv, with a number if it exists)."


def add_options(parser: Any, options: Iterable[Option]) -> None:
    """Adds options to a jsonargparse parser or to a group of it. Whether a required one is given is not checked."""
    for option in options:
        text = option.help
        if option.required:
            text = f"{text} (must be given)".lstrip()
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=text or None)


def add_function_options(parser: Any, function: Callable[..., Any], skip: Collection[str] = ()) -> None:
    """Adds the arguments of a command's function to its parser; `overwrite` is the option `add_overwrite`."""
    parser.add_function_arguments(function, skip={*skip, "overwrite"})
    add_overwrite(parser)


def add_overwrite(parser: Any) -> None:
    """Adds `--overwrite`, which is typed without a value."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist.")


def parse_without_checkpoint(parser: Any, words: Sequence[str]) -> NoReturn:
    """Prints the options that every model has, if help is asked for; raises a `UserError` otherwise.

    Args:
        parser: parser of these options, of a command whose further options are decided by the model in the checkpoint.
        words: words of the command line, without `--ckpt_path`.
    """
    known = option_names(parser)
    for name in typed_options(words):
        if f"--{name}" not in known and not nearest(f"--{name}", known, 0.7):
            raise UserError(f"--ckpt_path or --model must be given: the model decides whether it has --{name}")
    parser.parse_args(words)
    raise UserError("--ckpt_path or --model must be given")


def name_checkpoint(words: Sequence[str]) -> list[str]:
    """Words of a command line in which `--model NAME` of a trained model is replaced by `--ckpt_path FOLDER`.

    Raises:
        UserError: there is no trained model of this name, or a checkpoint is given as well.
    """
    from zoo.hub.trained import find_trained

    typed = typed_options(words)
    if "model" not in typed:
        return list(words)
    if typed["model"] is None:
        raise UserError("--model must be followed by the name of a trained model; the command list models names them")
    if "ckpt_path" in typed:
        raise UserError("--model and --ckpt_path both name a model: leave one out")
    folder = str(find_trained(typed["model"], "--model_class"))
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--model" or word.startswith("--model="):
            found += ["--ckpt_path", folder]
            if word == "--model":
                next(rest)
        else:
            found.append(word)
    return found


def typed_options(words: Sequence[str]) -> dict[str, str | None]:
    """Options among the words of a command line, by name without dashes, with their values as typed, the last one each.

    The value is None if the option is followed by another option, or by nothing.
    """
    typed: dict[str, str | None] = {}
    for word, following in itertools.zip_longest(words, words[1:]):
        if word.startswith("--"):
            name, equals, after = word[2:].partition("=")
            value = following if following is not None and not following.startswith("--") else None
            typed[name.removesuffix("+")] = after if equals else value  # `--labels+=3` appends to a list
    return typed
