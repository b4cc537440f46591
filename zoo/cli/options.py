"""Options of a command that are the keyword arguments of a model's methods.

A method such as `sample(n, *, labels=None, generator=None, steps=40)` has arguments that the command fills in, its
contract, and arguments of its own, which the user may give. Names, types and defaults of the latter are read from the
signature, descriptions from the docstring.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from zoo._lightning import option_names
from zoo.errors import UserError, nearest, one_line

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
PLAIN_TYPES = (int, float, str, bool, NoneType, list, tuple)
#: Types that are plain if their arguments are.
CONTAINERS = (Union, UnionType, list, tuple, Sequence)


class Option(NamedTuple):
    """A keyword argument of a method.

    Attributes:
        name: name of the argument.
        type: type that the parser checks; None if its values cannot be typed on a command line.
        default: default value; None if the argument is required.
        required: whether the argument has no default.
        help: description in the docstring of the method, in one line; empty if there is none.
    """

    name: str
    type: Any
    default: Any
    required: bool
    help: str


def own_options(owner: type, method: str, contract: Collection[str]) -> dict[str, Option]:
    """Keyword arguments of a method beyond its contract, by name.

    With `**kwargs`, those of the same method of the base class are included; a description that the method's docstring
    lacks is taken from the base class as well.

    An argument can be typed on a command line if its annotation is made of int, float, str, bool, None, Literal, list,
    tuple, Sequence and unions of them. Without an annotation, the type of its default value counts.

    Args:
        owner: class that has the method.
        method: name of the method.
        contract: arguments that the caller fills in.
    """
    found: dict[str, Option] = {}
    descriptions = _descriptions(owner, method)
    for function in _called(owner, method):
        for parameter in _keywords(function):
            name = parameter.name
            if name not in contract and name not in found:
                required = parameter.default is parameter.empty
                default = None if required else parameter.default
                found[name] = Option(name, _type(function, parameter), default, required, descriptions.get(name, ""))
    return found


def accepts(owner: type, method: str, name: str) -> bool:
    """Whether a method takes a keyword argument, itself or by `**kwargs` from its base class."""
    return any(name == parameter.name for function in _called(owner, method) for parameter in _keywords(function))


def select_options(model: Any, method: str, own: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options that a method of the model takes.

    Args:
        model: model that has the method.
        method: name of the method.
        own: options of the method.
        given: values by name, of this method's options and of others'.

    Raises:
        UserError: an argument of the method that has no default is not given.
    """
    name = type(model).__name__
    for option in own.values():
        if option.required and option.name not in given:
            if option.type is None:
                raise UserError(f"{name}.{method} needs {option.name}, which only a call in Python can give")
            raise UserError(f"--{option.name} must be given: {name}.{method} has no default for it")
    return {name: value for name, value in given.items() if name in own}


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


def _called(owner: type, method: str) -> Iterator[Callable[..., Any]]:
    """The function of a method, and those of its bases that its `**kwargs` are passed on to."""
    for function in _functions(owner, method):
        yield function
        if all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
            return


def _functions(owner: type, method: str) -> list[Callable[..., Any]]:
    """Functions of a method in a class and its bases, without decorators such as `torch.no_grad()`."""
    return [inspect.unwrap(vars(base)[method]) for base in owner.__mro__ if method in vars(base)]


def _keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Parameters of a method that can be given by name, without `self`."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _descriptions(owner: type, method: str) -> dict[str, str]:
    """Descriptions of the arguments of a method, each in one line."""
    from docstring_parser import parse  # of jsonargparse[signatures]; it knows the usual styles of docstrings

    found: dict[str, str] = {}
    for function in reversed(_functions(owner, method)):  # bases first
        for parameter in parse(inspect.getdoc(function) or "").params:
            if parameter.description:
                found[parameter.arg_name] = one_line(parameter.description)
    return found


def _type(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Type of an option for the parser, None if it is not plain."""
    default = parameter.default
    if parameter.annotation is parameter.empty:
        return type(default) if isinstance(default, PLAIN_TYPES) and default is not None else None
    alone = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:  # each for itself: names that are imported for type checkers only are not known here
        hint = get_type_hints(alone, globalns=getattr(function, "__globals__", {}))["it"]
    except Exception:  # an annotation of somebody else can raise anything
        return None
    if not _is_plain(hint) or hint is NoneType:
        return None
    return hint | None if default is None and NoneType not in get_args(hint) else hint


def _is_plain(hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return True
    if origin in CONTAINERS:
        return all(argument is Ellipsis or _is_plain(argument) for argument in get_args(hint))
    return hint in PLAIN_TYPES
