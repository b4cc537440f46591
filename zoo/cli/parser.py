"""A parser whose error messages are one line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from zoo._lightning import option_names
from zoo.cli.loggers import with_save_dir
from zoo.cli.main import COMMANDS
from zoo.cli.messages import explain
from zoo.cli.recipes import check_expansion
from zoo.datamodules import Augment
from zoo.errors import UserError


def _parse_number(value: str | float) -> float:
    return value if isinstance(value, (int, float)) else float(value)


# Transforms of torchvision declare arguments as Number; the parser knows neither how to read nor how to write one.
register_type(Number, lambda number: number, _parse_number)
# `augment` is an Augment or any callable. Unless the parser takes a dataclass for a class like others, it loses the
# class_path of a callable that replaces a recipe's Augment.
set_parsing_settings(subclasses_enabled=[Augment])
_load_yaml = get_loader("yaml")


def _load_bounded(text: str) -> Any:
    """YAML of an option, or of a file that an option names, unless its aliases stand for too much."""
    if "*" in text:
        check_expansion(yaml.compose(text, yaml.SafeLoader), "a value or file of the options")
    return _load_yaml(text)


set_loader("yaml", _load_bounded, (yaml.YAMLError,))


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Numbers in a configuration with the names of their options."""
    if isinstance(value, (Namespace, Mapping)):
        for key, inner in vars(value).items() if isinstance(value, Namespace) else value.items():
            nameless = key in ("init_args", "dict_kwargs") or (not name and key in COMMANDS)
            yield from _numbers(inner, name if nameless else f"{name}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner, name)
    elif type(value) in (int, float):
        yield name, value


class OneLineParser(LightningArgumentParser):
    """Raises a `UserError` that explains a mistake in one line, instead of printing the usage."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parses arguments; `--name=None` is `--name=null`.

        jsonargparse 4.53 hands an option of an object inside of another one on as text, and then null has become
        "None", which is a valid name of weights, for example.
        """
        if args is not None:
            args = [f"{arg[:-4]}null" if isinstance(arg, str) and arg.endswith("=None") else arg for arg in args]
        parsed = super().parse_args(args, *rest, **options)
        for name, number in _numbers(parsed) if self.exit_on_error else ():  # a nested parser lacks half of the name
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"--{name} is too large; whole numbers must be below 2**63")
            if math.isnan(number):
                raise UserError(f"--{name} is nan, which is not a number")
        return parsed

    def validate(self, namespace: Namespace, *args: Any, **options: Any) -> None:
        """Checks a configuration, in which loggers may lack `save_dir`: they are given a folder when they are built."""
        namespace = namespace.clone()
        for key in ("trainer.logger", *(f"{command}.trainer.logger" for command in COMMANDS)):
            given = namespace.get(key)
            if isinstance(given, (Namespace, list)):
                specs = [with_save_dir(spec) for spec in given] if isinstance(given, list) else with_save_dir(given)
                namespace[key] = specs
        super().validate(namespace, *args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser that tries one type of a union
            super().error(message, ex)
        raise UserError(explain(message, option_names(self)))
