"""Options of a model that are the keyword arguments of its methods.

A method such as `sample(n, *, labels=None, generator=None, steps=40)` has arguments that the caller fills in, its
contract, and arguments of its own, which the user may give: on a command line, or in the fields of a page. Names, types
and defaults of the latter are read from the signature, descriptions from the docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from zoo.errors import UserError, one_line

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
