"""A parser whose error messages are one line."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from zoo._lightning import option_names
from zoo.cli.messages import explain
from zoo.errors import UserError


class OneLineParser(LightningArgumentParser):
    """Raises a `UserError` that explains a mistake in one line, instead of printing the usage."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parses arguments; `--name=None` is `--name=null`.

        jsonargparse 4.53 hands an option of an object inside of another one on as text, and then null has become
        "None", which is a valid name of weights, for example.
        """
        if args is not None:
            args = [f"{arg[:-4]}null" if isinstance(arg, str) and arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser that tries one type of a union
            super().error(message, ex)
        raise UserError(explain(message, option_names(self)))
