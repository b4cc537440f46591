"""What a parser says about a mistake, in one line that a person can act on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from lightning.pytorch import callbacks as lightning_callbacks
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.catalog import catalog, did_you_mean, nearest

KIND_OF_KEY = {"model": "models", "data": "data", "trainer.callbacks": "callbacks"}


def one_line(message: str) -> str:
    """The message without line breaks."""
    return " ".join(message.split())


def explain(message: str) -> str:
    """Turns jsonargparse's message into one line that names the mistake, what is accepted, and the way out."""
    message = one_line(message)
    for pattern, answer in _ANSWERS:
        if match := re.search(pattern, message):
            return answer(_key(message, match), *match.groups())
    return message


def _key(message: str, match: re.Match[str]) -> str:
    """The nested key that the message is about, such as model.loss."""
    keys = re.findall(r'Parser key "([\w.+]+)"', message[: match.end()])
    return ".".join(dict.fromkeys(keys))


def _unknown_class(key: str, name: str) -> str:
    short = name.rsplit(".", 1)[-1]
    if key not in KIND_OF_KEY:
        of_torch = [c.__name__ for c in (*Optimizer.__subclasses__(), *LRScheduler.__subclasses__())]
        return f"--{key} {name} is not a class that can be imported{nearest(short, of_torch)}"
    kind = KIND_OF_KEY[key]
    known = [entry.name for entry in catalog() if entry.kind == kind]
    of_lightning = lightning_callbacks.__all__ if kind == "callbacks" else []
    hint = nearest(short, [*known, *of_lightning]) or did_you_mean(short, known)
    return f"--{key} {name} is neither in the zoo nor a class that can be imported{hint}"


def _unknown_option(key: str, name: str) -> str:
    kind = KIND_OF_KEY.get(key.removesuffix(".init_args"))
    known: set[str] = set()
    for entry in catalog():
        if entry.kind == kind and entry.target is not None:
            known |= set(inspect.signature(entry.target).parameters)
    return f"--{key}.{name} is not an option{did_you_mean(name, sorted(known)) if known else ''}"


def _wrong_choice(key: str, choices: str, value: str) -> str:
    return f"--{key} {value} is not possible; choose one of {choices.replace(chr(39), '')}"


def _wrong_type(key: str, expected: str, value: str) -> str:
    expected = re.sub(r"(?:Expected a )?<class '(?:[\w.]+\.)?(\w+)'>", r"\1", expected).replace("typing.", "")
    return f"--{key} {value} is not possible; it must be of type {expected}"


def _missing(key: str, names: str) -> str:
    options = [name.split(".")[-1] for name in re.findall(r"[\w.]+", names)]
    if "model" in options:
        return (
            "no model is given: take a recipe, such as --config gan.yaml (the command list names them), or --model NAME"
        )
    return f"--{' and --'.join(options)} must be given"


def _said_by_constructor(key: str, sentence: str) -> str:
    return sentence


_ANSWERS: list[tuple[str, Callable[..., str]]] = [
    (r"Problem with given class_path '([\w.]+)': (?:No module|module .* has no attribute)", _unknown_class),
    (r"Errors: - (Expected a <class '\w+'>) - Expected a dot import path string: (\S+)", _wrong_type),
    (r"Expected a dot import path string: ([\w.]+)", _unknown_class),
    (r"Option '([\w.]+)' is not accepted", _unknown_option),
    (r"Key '([\w.]+)' is not expected", _unknown_option),
    (r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)", _wrong_choice),
    (r"Expected a <class '(\w+)'>\. Got value: (.+?)(?: - |$)", _wrong_type),
    (r"following arguments are required: (.+)", _missing),
    (r"[Uu]nrecognized arguments: (\S+)", lambda key, name: f"{name} is not an option; --help names them"),
    (r"Errors: - (.+?) - Expected a <class 'NoneType'> Given value type: <class 'jsonargparse", _said_by_constructor),
    (r"Subtypes: \[(.+?)\] Errors: .* Given value: (.+)$", _wrong_type),
]
