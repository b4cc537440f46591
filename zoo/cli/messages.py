"""Error messages of the parser and of Lightning, reworded into one line that names the mistake and the fix."""

from __future__ import annotations

import errno
import inspect
import re
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import OutOfMemoryError
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.datamodules.memory import in_words
from zoo.errors import UserError, did_you_mean, nearest, one_line
from zoo.registry import entries

KIND_OF_KEY = {"model": "models", "data": "data", "trainer.callbacks": "callbacks"}
AUGMENTATIONS = ("Augment", "zoo.datamodules.PerSample")
DISK_ERRORS = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
} - {None}
#: Arguments of optimizers, which are mistaken for a model's own.
OPTIMIZER_OPTIONS = {name for kind in (SGD, AdamW) for name in inspect.signature(kind).parameters} - {"params"}
#: Options by the names that they had in older versions of Lightning, or have elsewhere.
OTHER_NAMES = {
    "trainer.gpus": "trainer.devices",
    "trainer.num_gpus": "trainer.devices",
    "trainer.num_processes": "trainer.devices",
    "trainer.tpu_cores": "trainer.devices",
    "trainer.epochs": "trainer.max_epochs",
    "trainer.steps": "trainer.max_steps",
}
# Functions that build objects from the command line, and errors that constructors raise about their arguments.
BUILDERS = ("instantiate_classes", "instantiate_trainer", "configure_optimizers", "setup_data", "_set_seed")
ARGUMENT_ERRORS = (ValueError, TypeError, ImportError, RuntimeError, OverflowError)


def as_user_error(error: Exception) -> UserError | None:
    """An error as a `UserError`, if the user can fix it; None for a fault of the program, which needs its traceback."""
    if isinstance(error, UserError):
        return error
    message = one_line(str(error))
    if isinstance(error, MisconfigurationException):
        return UserError(explain(message))
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return UserError(f"{error.filename or 'a file of the run'} cannot be read or written: {error.strerror}")
    if isinstance(error, RuntimeError) and "which is not available" in message:  # EarlyStopping's monitor
        return UserError(explain(message))
    if lacking := _lacking_memory(error, message):
        return UserError(f"the memory does not suffice{lacking}; make the model, the batch or the number smaller")
    # Errors of constructors are about what was typed; errors raised later are not.
    if isinstance(error, ARGUMENT_ERRORS) and _raised_while_building(error):
        return UserError(explain(message))
    return None


def _lacking_memory(error: Exception, message: str) -> str | None:
    """How much memory could not be had, in words; None if the error is about something else."""
    if match := re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", message):
        return f" for {in_words(int(match[1]))} at once"
    return "" if isinstance(error, (MemoryError, OutOfMemoryError)) else None


def _raised_while_building(error: BaseException) -> bool:
    return any(frame.name in BUILDERS for frame in traceback.extract_tb(error.__traceback__))


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Rewords jsonargparse's message into one line that names the mistake, the accepted values and the fix.

    Args:
        message: jsonargparse's message.
        options: valid options, among which a similar one is suggested.
    """
    message = one_line(message)
    for pattern, answer in _ANSWERS:
        if match := re.search(pattern, message):
            return answer(_key(message, match), *match.groups())
    for pattern in _UNKNOWN:
        if match := re.search(pattern, message):
            name = f"--{match[1]}"
            if other := OTHER_NAMES.get(match[1]):
                return f"{name} is not an option; did you mean --{other}?"
            return f"{name} is not an option{nearest(name, options, 0.7) or '; --help names them'}"
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        return f"{match[1]} is not an option: options begin with --, and --help names them"
    return message


def _key(message: str, match: re.Match[str]) -> str:
    """Nested key that the message is about, such as model.loss."""
    keys = re.findall(r'Parser key "([\w.+]+)"', message[: match.end()])
    return ".".join(dict.fromkeys(keys))


def _unknown_class(key: str, name: str) -> str:
    short = name.rsplit(".", 1)[-1]
    if key.endswith(".augment"):
        return f"--{key} {name} is not a callable that can be imported{nearest(short, AUGMENTATIONS)}"
    if key == "trainer.logger":
        names = [n for n in lightning_loggers.__all__ if issubclass(getattr(lightning_loggers, n), Logger)]
        names.remove("Logger")
        hint = _in_this_folder(name) or did_you_mean(short, names)
        return f"--{key} {name} is neither a logger of Lightning nor a class that can be imported{hint}"
    if key not in KIND_OF_KEY:
        from zoo.optim import WarmupDecay

        known: list[type] = [WarmupDecay, *Optimizer.__subclasses__(), *LRScheduler.__subclasses__()]
        return f"--{key} {name} is not a class that can be imported{nearest(short, [_path(c) for c in known])}"
    kind = KIND_OF_KEY[key]
    names = [entry.name for entry in entries(kind)]
    of_lightning = lightning_callbacks.__all__ if kind == "callbacks" else []
    hint = _in_this_folder(name) or nearest(short, [*names, *of_lightning]) or did_you_mean(short, names)
    return f"--{key} {name} is neither in the zoo nor a class that can be imported{hint}"


def _path(target: type) -> str:
    """Name of a class that has no short name in the zoo."""
    package = target.__module__.split(".")[0]
    return target.__name__ if package == "torch" else f"{target.__module__.rsplit('.', 1)[0]}.{target.__name__}"


def _unknown_option(key: str, class_path: str, name: str) -> str:
    """Message about an option that a class lacks: which other class has it, or a similar option."""
    key, first = key.removesuffix(".init_args"), name.split(".")[0]
    target = import_class(class_path)
    known = sorted(_options(target))
    if first in known:  # the mistake is in a nested part
        return f"--{key}.{name} is not an option"
    if nested := [option for option in known if option.startswith("optimizer") and first in OPTIMIZER_OPTIONS]:
        near = " or ".join(f"--{key}.{option}.{first}" for option in nested)
        return f"--{key}.{name} is not an option of {target.__name__}; did you mean {near}?"
    others = [e.name for e in entries(KIND_OF_KEY[key]) if first in _options(e.load())] if key in KIND_OF_KEY else []
    if others:
        hint = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
    else:
        hint = did_you_mean(first, known) if known else ""
    return f"--{key}.{name} is not an option of {target.__name__}{hint}"


def _unknown_option_of_callable(key: str, name: str, class_path: str) -> str:
    if class_path == "torch.nn.Module":
        return _unknown_network(key, "", f"NestedArg(key='{name}', val='...')")
    return _unknown_option(key, class_path, name)


def _wrong_argument_of_callable(key: str, value: str, class_path: str) -> str:
    return f"--{key} {_short(value)} is not possible for {class_path}"


def import_class(class_path: str) -> type:
    """Class at an import path that the parser has imported already."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _options(target: type | None) -> set[str]:
    """Arguments of the constructors of a class, and of those of its bases to which it passes others on."""
    names: set[str] = set()
    for base in inspect.getmro(target) if target is not None else ():
        if "__init__" in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
            names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names


def _unknown_network(key: str, choices: str, value: str) -> str:
    """Message about a name that is no network, or an option of one that is not named by its class."""
    choices = choices.replace("'", "")
    nested = re.match(r"NestedArg\(key='([\w.]+)', val='(.*)'", value)
    if nested:
        return (
            f"--{key}.{nested[1]} is an option of a network: name its class first, such as --{key} NAME "
            f"--{key}.{nested[1]} {nested[2]} (the command list names the networks)"
        )
    names = [*filter(None, choices.split(", ")), *(entry.name for entry in entries("networks"))]
    hint = nearest(value, names) or f"; there are {', '.join(names)}"
    return f"--{key} {_short(value)} is neither a network of the zoo nor a class that can be imported{hint}"


def _unknown_part(key: str, value: str) -> str:
    return _unknown_network(key, "", value) if key.endswith("network") else _unknown_class(key, value)


def _unimportable_network(key: str, reason: str, value: str) -> str:
    return f"--{key} {value} cannot be imported ({reason.strip()}){_in_this_folder(value)}"


def _in_this_folder(class_path: str) -> str:
    """Suffix of a message about a class that cannot be imported, if its module lies in the working folder."""
    module = class_path.partition(".")[0]
    here = Path(f"{module}.py").is_file() or Path(module, "__init__.py").is_file()
    return f"; {module} is in this folder: set PYTHONPATH=. so that it is found" if here and "." in class_path else ""


def _no_network(key: str, value: str) -> str:
    return f"--{key} {value} is not a network: it must be a class derived from torch.nn.Module, or return one"


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
    return f"--{' and --'.join(f'{key}.{option}' if key else option for option in options)} must be given"


def _unknown_metric(key: str, name: str, listed: str) -> str:
    known = [metric for metric in re.findall(r"[`']([^`']+)[`']", listed) if metric not in ("epoch", "step")]
    return f"the monitor {name} is not a metric of this run{nearest(name, known)}; there are {', '.join(known)}"


def _no_device(key: str, name: str = "gpu") -> str:
    return (
        f"--trainer.accelerator {name.lower()} is not possible: there is no such device on this machine, or this torch "
        "does not support it; use --trainer.accelerator auto, or cpu"
    )


def _said_by_constructor(key: str, sentence: str) -> str:
    return sentence


_MODULE = r"collections\.abc\.Callable\[[^|]*?torch\.nn\.modules\.module\.Module\]"
_ANSWERS: list[tuple[str, Callable[..., str]]] = [
    (_MODULE + r".* Expected '([\w.]+)' to be a (?:subclass of|function that)", _no_network),
    (
        _MODULE
        + r" expects a function or a callable class: ((?:No module|module ).*?)(?=\. Got value| Given value type)"
        r".*?(?:Got|Given) value: (?!<|Nested)([\w.]+)",
        _unimportable_network,
    ),
    (
        r"Subtypes: \[typing\.Literal\[([^]]*)\], " + _MODULE + r"\] Errors:.*?"
        r"Expected a dot import path string.*?Given value: (NestedArg\(.*?\)|\S+)",
        _unknown_network,
    ),
    (r"Errors: - Expected a typing\.Literal\[(.*?)\] - Expected a dot import path string: (\S+)", _wrong_choice),
    (r"- Expected a path but (\w+) either .* - Expected a dot import path string: \w+ - Expected", _unknown_part),
    (r"Problem with given class_path '([\w.]+)': (?:No module|module .* has no attribute)", _unknown_class),
    (r"Errors: - (Expected a <class '\w+'>) - Expected a dot import path string: (\S+)", _wrong_type),
    (r"Expected a dot import path string: ([\w.]+)", _unknown_class),
    (r"Option '([\w.]+)' is not accepted\. Got value: Namespace\(class_path='([\w.]+)'", _unknown_option_of_callable),
    (
        r"a callable class: Parser key \"\w+\": .*?Given value: (.+?)\. Got value: Namespace\(class_path='([\w.]+)'",
        _wrong_argument_of_callable,
    ),
    (r"given class_path '([\w.]+)': Option '([\w.]+)' is not accepted", _unknown_option),
    (r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)", _wrong_choice),
    (r"Expected a <class '(\w+)'>\. Got value: (.+?)(?: - |\. Got value: |$)", _wrong_type),
    (r"`(CUDA|MPS|XLA)Accelerator` can not run on your system", _no_device),
    (r"No supported gpu backend found", _no_device),
    (r"Requirement 'torch_xla", lambda key: _no_device(key, "tpu")),
    (r"metric `(\S+)` which is not available.* following: (.*)", _unknown_metric),
    (r"\(monitor='(\S+)'\)` could not find the monitored key in the returned metrics: \[(.*?)\]", _unknown_metric),
    (r"following arguments are required: ([\w.-]+(?:, [\w.-]+)*)", _missing),
    (r"Errors: - (.+?) - Expected a <class 'NoneType'> Given value type: <class 'jsonargparse", _said_by_constructor),
    (r"Subtypes: \[(.+?)\] Errors: .* Given value: (.+)$", _wrong_type),
]
# Options that the parser does not know at all.
_UNKNOWN = (
    r"[Uu]nrecognized arguments: --([^\s=]+)",
    r"(?:Subcommand|Group) '\w+' does not accept option '([\w.]+)'",
    r"Key '([\w.]+)' is not expected",
)
