"""The one exception for what a user can put right."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user asked for cannot be done; the message names it and the way out, in one line.

    The command line prints the message without a traceback and exits with code 2. In other programs it is an ordinary
    ValueError.
    """


class NonFiniteError(ArithmeticError):
    """Training has left the numbers: a loss, a gradient or a parameter is infinite or not a number.

    Nothing that was typed is impossible in itself, so the command line exits with code 1 and not 2.
    """


def check_choice(name: str, choice: str, choices: Iterable[str]) -> None:
    """Raises a `UserError` that names the choices unless `choice` is one of them."""
    if choice not in choices:
        raise UserError(f"{name} is {choice!r}; choose one of {', '.join(choices)}")


def check_at_least(least: float, **values: float | None) -> None:
    """Raises a `UserError` that names the first of the values that is below `least`, or nan; None is left out."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{name} is {value}; it must be {f'at least {least}' if least else '0 or more'}")
