"""Fields of a page for the keyword arguments of a model's method, and the arguments that they hold.

A field is left empty for the model's default. Types and descriptions are those of the command line's options, see
`zoo.hub.method_options`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from zoo.contracts import OptionChoices, offers
from zoo.errors import UserError
from zoo.hub.method_options import Option, own_options, select_options

Kind = Literal["integer", "number", "choice", "switch", "text"]


class Field(NamedTuple):
    """A field of a page.

    Attributes:
        name: name of the argument.
        kind: what is entered.
        value: first value; None for an empty field.
        choices: valid values of a choice.
        info: description; empty for a choice, whose values say it.
    """

    name: str
    kind: Kind
    value: Any
    choices: tuple[str, ...]
    info: str


def fields_of(model: Any, method: str, contract: Collection[str]) -> list[Field]:
    """Fields for the arguments of a method that can be entered: numbers, switches, choices and texts.

    Args:
        model: model that has the method.
        method: name of the method.
        contract: arguments that the page fills in itself.
    """
    fields = (_field(model, option) for option in own_options(type(model), method, contract).values())
    return [field for field in fields if field is not None]


def entered(model: Any, method: str, contract: Collection[str], values: Sequence[Any]) -> dict[str, Any]:
    """Arguments of a method by the values of its fields, in their order; those of empty fields are left out.

    Raises:
        UserError: a value is not of the field's kind, or an argument without a default is missing.
    """
    fields = fields_of(model, method, contract)
    given = {field.name: _checked(field, value) for field, value in zip(fields, values, strict=True)}
    filled = {name: value for name, value in given.items() if value not in (None, "")}
    return select_options(model, method, own_options(type(model), method, contract), filled)


def _field(model: Any, option: Option) -> Field | None:
    """The field of an option; None if its values cannot be entered."""
    hints = _alternatives(option.type)
    choices: tuple[str, ...] = ()
    if named := [value for hint in hints if get_origin(hint) is Literal for value in get_args(hint)]:
        if not all(isinstance(value, str) for value in named):
            return None
        kind: Kind = "choice"
        choices = tuple(named)
    elif offers(model, OptionChoices) and option.name in model.option_choices:
        kind, choices = "choice", tuple(model.option_choices[option.name])
    elif bool in hints:
        kind = "switch"
    elif float in hints or int in hints:
        kind = "number" if float in hints else "integer"
    elif str in hints:
        kind = "text"
    else:
        return None
    value = option.default
    if value is None and kind != "text":  # the model's own setting, if it has one of this name
        value = getattr(model, option.name, None)
        value = value if isinstance(value, (bool, int, float, str)) else None
    return Field(option.name, kind, value, choices, "" if choices else option.help)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, UnionType):
        return tuple(part for part in get_args(hint) if part is not NoneType)
    return (hint,)


def _checked(field: Field, value: Any) -> Any:
    """The value of a field: a whole number as an int, and a number that is typed as text as one."""
    if value in (None, ""):
        return None
    if field.kind in ("integer", "number"):
        number = _number(value)
        if number is None:
            raise UserError(f"{field.name} is {value!r}; it must be a {'whole ' * (field.kind == 'integer')}number")
        return whole_number(field.name, number) if field.kind == "integer" else number
    if field.kind == "choice" and value not in field.choices:
        raise UserError(f"{field.name} is {value!r}; choose one of {', '.join(field.choices)}")
    return value


def _number(value: Any) -> float | None:
    """A number, or one in a text; None if it is none."""
    try:
        return float(value) if isinstance(value, str) else value if isinstance(value, (int, float)) else None
    except ValueError:
        return None


def whole_number(name: str, value: Any) -> int:
    """The value of a field for a whole number.

    Raises:
        UserError: it is empty, not a number, or has a fraction.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise UserError(f"{name} is {'empty' if value is None else repr(value)}; it must be a whole number")
    return int(value)
