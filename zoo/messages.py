"""What a parser says about a mistake, in one line that a person can act on."""

from __future__ import annotations

import argparse
import errno
import inspect
import re
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module

from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.catalog import catalog, did_you_mean, nearest
from zoo.errors import UserError

KIND_OF_KEY = {"model": "models", "data": "data", "trainer.callbacks": "callbacks"}
OF_THE_DISK = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
} - {None}
# Functions in which what was typed is made into objects, and what their constructors raise.
BUILDING = ("instantiate_classes", "instantiate_trainer", "configure_optimizers", "setup_data", "_set_seed")
OF_ARGUMENTS = (ValueError, TypeError, ImportError, RuntimeError, OverflowError)


def one_line(message: str) -> str:
    """The message without line breaks."""
    return " ".join(message.split())


def as_user_error(error: Exception) -> UserError | None:
    """What a user can put right about an error; None where it is a fault of the program, which a traceback shows."""
    if isinstance(error, UserError):
        return error
    message = one_line(str(error))
    if isinstance(error, MisconfigurationException):
        return UserError(explain(message))
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return UserError(f"{error.filename or 'a file of the run'} cannot be read or written: {error.strerror}")
    if isinstance(error, RuntimeError) and "which is not available" in message:  # EarlyStopping's monitor
        return UserError(explain(message))
    # What a constructor says of its arguments reaches us through jsonargparse, or from Lightning's Trainer; what is
    # raised later is no answer to what was typed.
    if isinstance(error, OF_ARGUMENTS) and _raised_while_building(error):
        return UserError(explain(message))
    return None


def _raised_while_building(error: BaseException) -> bool:
    return any(frame.name in BUILDING for frame in traceback.extract_tb(error.__traceback__))


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Turns jsonargparse's message into one line that names the mistake, what is accepted, and the way out.

    Args:
        message: what it says.
        options: that there are, one of which may have been meant.
    """
    message = one_line(message)
    for pattern, answer in _ANSWERS:
        if match := re.search(pattern, message):
            return answer(_key(message, match), *match.groups())
    for pattern in _UNKNOWN:
        if match := re.search(pattern, message):
            name = f"--{match[1]}"
            return f"{name} is not an option{nearest(name, options, 0.7) or '; --help names them'}"
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        return f"{match[1]} is no option: options begin with --, and --help names them"
    return message


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a parser and of its commands, as they are typed."""
    names: list[str] = []
    for action in parser._actions:
        names += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            names += [name for command in (action.choices or {}).values() for name in option_names(command)]
    return [name for name in names if name.startswith("--")]


def _key(message: str, match: re.Match[str]) -> str:
    """The nested key that the message is about, such as model.loss."""
    keys = re.findall(r'Parser key "([\w.+]+)"', message[: match.end()])
    return ".".join(dict.fromkeys(keys))


def _unknown_class(key: str, name: str) -> str:
    short = name.rsplit(".", 1)[-1]
    if key not in KIND_OF_KEY:
        from zoo.optim import WarmupDecay

        known: list[type] = [WarmupDecay, *Optimizer.__subclasses__(), *LRScheduler.__subclasses__()]
        return f"--{key} {name} is not a class that can be imported{nearest(short, [_path(c) for c in known])}"
    kind = KIND_OF_KEY[key]
    names = [entry.name for entry in catalog() if entry.kind == kind]
    of_lightning = lightning_callbacks.__all__ if kind == "callbacks" else []
    hint = nearest(short, [*names, *of_lightning]) or did_you_mean(short, names)
    return f"--{key} {name} is neither in the zoo nor a class that can be imported{hint}"


def _path(target: type) -> str:
    """How a class is named where the zoo's short names do not reach."""
    package = target.__module__.split(".")[0]
    return target.__name__ if package == "torch" else f"{target.__module__.rsplit('.', 1)[0]}.{target.__name__}"


def _unknown_option(key: str, class_path: str, name: str) -> str:
    """Of a class that was chosen: what it has instead, or which other model, data module or callback has it."""
    key, first = key.removesuffix(".init_args"), name.split(".")[0]
    target = _import(class_path)
    known = sorted(_options(target))
    if first in known:  # what is wrong lies deeper
        return f"--{key}.{name} is not an option"
    others = [e.name for e in catalog() if e.kind == KIND_OF_KEY.get(key) and first in _options(e.target)]
    if others:
        hint = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
    else:
        hint = did_you_mean(first, known) if known else ""
    return f"--{key}.{name} is not an option of {target.__name__}{hint}"


def _unknown_option_of_callable(key: str, name: str, class_path: str) -> str:
    return _unknown_option(key, class_path, name)


def _import(class_path: str) -> type:
    """A class that the parser has already imported under this name."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _options(target: type | None) -> set[str]:
    """What the constructors of a class and of its bases take, but for what is linked from the data."""
    names: set[str] = set()
    for base in inspect.getmro(target) if target is not None else ():
        if "__init__" in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
            names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return names


def _wrong_choice(key: str, choices: str, value: str) -> str:
    return f"--{key} {value} is not possible; choose one of {choices.replace(chr(39), '')}"


def _wrong_type(key: str, expected: str, value: str) -> str:
    expected = re.sub(r"(?:Expected a )?<class '(?:[\w.]+\.)?(\w+)'>", r"\1", expected).replace("typing.", "")
    if key in KIND_OF_KEY:
        return (
            f"--{key} {_short(value)} is not possible; it must be a class, by its name or by class_path and init_args"
        )
    return f"--{key} {_short(value)} is not possible; it must be of type {expected}"


def _short(value: str, length: int = 60) -> str:
    return value if len(value) <= length else f"{value[:length]}..."


def _missing(key: str, names: str) -> str:
    options = [name.split(".")[-1] for name in re.findall(r"[\w.]+", names)]
    if "model" in options:
        return (
            "no model is given: take a recipe, such as --config gan.yaml (the command list names them), or --model NAME"
        )
    return f"--{' and --'.join(options)} must be given"


def _unknown_metric(key: str, name: str, listed: str) -> str:
    known = [metric for metric in re.findall(r"[`']([^`']+)[`']", listed) if metric not in ("epoch", "step")]
    return f"the monitor {name} is no metric of this run{nearest(name, known)}; there are {', '.join(known)}"


def _said_by_constructor(key: str, sentence: str) -> str:
    return sentence


_ANSWERS: list[tuple[str, Callable[..., str]]] = [
    (r"Problem with given class_path '([\w.]+)': (?:No module|module .* has no attribute)", _unknown_class),
    (r"Errors: - (Expected a <class '\w+'>) - Expected a dot import path string: (\S+)", _wrong_type),
    (r"Expected a dot import path string: ([\w.]+)", _unknown_class),
    (r"Option '([\w.]+)' is not accepted\. Got value: Namespace\(class_path='([\w.]+)'", _unknown_option_of_callable),
    (r"given class_path '([\w.]+)': Option '([\w.]+)' is not accepted", _unknown_option),
    (r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)", _wrong_choice),
    (r"Expected a <class '(\w+)'>\. Got value: (.+?)(?: - |$)", _wrong_type),
    (r"metric `(\S+)` which is not available.* following: (.*)", _unknown_metric),
    (r"\(monitor='(\S+)'\)` could not find the monitored key in the returned metrics: \[(.*?)\]", _unknown_metric),
    (r"following arguments are required: (.+)", _missing),
    (r"Errors: - (.+?) - Expected a <class 'NoneType'> Given value type: <class 'jsonargparse", _said_by_constructor),
    (r"Subtypes: \[(.+?)\] Errors: .* Given value: (.+)$", _wrong_type),
]
# What the parser does not know at all.
_UNKNOWN = (
    r"[Uu]nrecognized arguments: --([^\s=]+)",
    r"(?:Subcommand|Group) '\w+' does not accept option '([\w.]+)'",
    r"Key '([\w.]+)' is not expected",
)
