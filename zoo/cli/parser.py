"""A parser whose error messages are one line."""

from __future__ import annotations

from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from zoo._lightning import option_names
from zoo.cli.messages import explain
from zoo.errors import UserError


class OneLineParser(LightningArgumentParser):
    """Raises a `UserError` that explains a mistake in one line, instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser that tries one type of a union
            super().error(message, ex)
        raise UserError(explain(message, option_names(self)))
