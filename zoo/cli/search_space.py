"""Search spaces of `tune`: YAML files of options and the values among which they are searched.

    model.optimizer.lr: {low: 0.0003, high: 0.03, log: true}
    model.depth: {low: 1, high: 4}
    data.batch_size: [64, 128, 256]

The values become Optuna's distributions. A key may name several options, separated by commas, that share one value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from zoo.cli.recipes import place, read_mapping
from zoo.errors import UserError, did_you_mean
from zoo.registry import space_files

RANGE_KEYS = ("low", "high", "step", "log")
#: Options that describe a model, its data or its training, and not where and how a run is kept.
SEARCHABLE = re.compile(r"(model|data|trainer\.\w+)(\.\w+)*")


@dataclass(frozen=True)
class SearchSpace:
    """Options and their distributions.

    Attributes:
        path: path to the file.
        distributions: distribution of each key; a key names one option, or several that share a value.
    """

    path: str
    distributions: dict[str, BaseDistribution]

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Options for the command line, for one value of each key."""
        return [f"--{name}={_word(value)}" for key, value in values.items() for name in option_names_of(key)]

    def corners(self) -> list[dict[str, Any]]:
        """Values that together contain both ends of every range and every choice."""
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        count = max(map(len, ends.values()))
        return [{key: values[min(k, len(values) - 1)] for key, values in ends.items()} for k in range(count)]

    def values_of(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The values that a configuration has, None if one of them is not in the space."""
        found: dict[str, Any] = {}
        for key, distribution in self.distributions.items():
            first, *others = [find_value(config, name) for name in option_names_of(key)]
            value = _choice(first) if isinstance(distribution, CategoricalDistribution) else first
            if any(other != first for other in others) or not _contains(distribution, value):
                return None
            found[key] = value
        return found

    def described(self) -> dict[str, Any]:
        """Plain values that are equal for equal spaces."""
        return {
            key: list(one.choices)
            if isinstance(one, CategoricalDistribution)
            else {name: value for name in RANGE_KEYS if (value := getattr(one, name)) is not None}
            for key, one in self.distributions.items()
        }


def read_space(name: str) -> SearchSpace:
    """Reads a search space: a file, or one of the package by its bare name.

    Raises:
        UserError: there is no such file, or it is no search space; the message names the line.
    """
    path = _find_space(name)
    node = read_mapping(path, "a search space", "data.batch_size: [32, 64]")
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    distributions: dict[str, BaseDistribution] = {}
    seen: set[str] = set()
    for (key_node, _), (key, entry) in zip(node.value, entries.items(), strict=True):
        where = f"{place(path, key_node.start_mark)}: {key}"
        for option in option_names_of(str(key)):
            if not SEARCHABLE.fullmatch(option):
                raise UserError(f"{where} cannot be searched: an option begins with model., data. or trainer.")
            if option in seen:
                raise UserError(f"{where}: {option} appears twice; remove one of them")
            seen.add(option)
        distributions[str(key)] = _distribution(where, entry)
    return SearchSpace(path, distributions)


def _find_space(name: str) -> str:
    shipped = space_files()
    if Path(name).is_file():
        return name
    if name not in shipped:
        raise UserError(f"--search {name} is neither a file nor a search space{did_you_mean(name, shipped)}")
    return str(shipped[name])


def option_names_of(key: str) -> list[str]:
    """Options that a key of a search space names."""
    return [name.strip() for name in key.split(",")]


# Distributions


def _distribution(where: str, entry: Any) -> BaseDistribution:
    if isinstance(entry, list):
        return _choices(where, entry)
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a range such as {{low: 1, high: 8}}, or a list of choices, not {entry}")
    for name in entry:
        if name not in RANGE_KEYS:
            raise UserError(f"{where}: {name} is not a key of a range{did_you_mean(str(name), RANGE_KEYS)}")
    low, high, step = (_number(where, name, entry.get(name), name == "step") for name in ("low", "high", "step"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log is {log}; it must be true or false")
    if not low < high:
        raise UserError(f"{where}: low is {low}; it must be below high, which is {high}")
    if log and low <= 0:
        raise UserError(f"{where}: low is {low}; with log: true it must be above 0")
    if log and step is not None:
        raise UserError(f"{where}: step cannot be combined with log: true; leave one out")
    if step is not None:
        _check_step(where, low, high, step)
    if all(isinstance(number, int) for number in (low, high, step) if number is not None):
        return IntDistribution(low, high, log, 1 if step is None else step)
    return FloatDistribution(low, high, log, step)


def _choices(where: str, entry: Sequence[Any]) -> CategoricalDistribution:
    choices = [_choice(value) for value in entry]
    if len({_word(choice) for choice in choices}) < max(2, len(choices)):
        raise UserError(f"{where} must have at least two choices, each of them once")
    return CategoricalDistribution(choices)


def _choice(value: Any) -> Any:
    """A value as Optuna stores a choice: lists and mappings as text, which the parser reads."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else json.dumps(value, default=str)


def _word(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _number(where: str, name: str, value: Any, optional: bool = False) -> Any:
    """A finite number; YAML takes 1e-4 for text."""
    if value is None and optional:
        return None
    if value is None:
        raise UserError(f"{where} has no {name}; a range is such as {{low: 1, high: 8}}")
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {name} is {value}; it must be a number")
    return value


def _check_step(where: str, low: float, high: float, step: float) -> None:
    if step <= 0:
        raise UserError(f"{where}: step is {step}; it must be above 0")
    count = (high - low) / step
    if round(count) < 1 or not math.isclose(count, round(count), rel_tol=1e-9):
        raise UserError(f"{where}: step is {step}; the range from {low} to {high} must be a multiple of it")


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    return [distribution.low, distribution.high]


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return _word(value) in map(_word, distribution.choices)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    count = (value - distribution.low) / (distribution.step or 1)
    on_grid = distribution.step is None or math.isclose(count, round(count), abs_tol=1e-9)
    return distribution.low <= value <= distribution.high and on_grid


# Options in configurations


def find_value(config: Mapping[str, Any], name: str) -> Any:
    """Value of an option in a configuration, as it is named on the command line; None if it is not there."""
    node: Any = config
    for key in _keys(config, name):
        node = node[key]
    return node


def excerpt(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Part of a configuration that sets only these options, to be stacked on others with the same classes.

    Options of callbacks come with the whole list of callbacks, since a configuration replaces lists.
    """
    result: dict[str, Any] = {}
    for name in names:
        node, out, keys = config, result, _keys(config, name)
        for depth, key in enumerate(keys, start=1):
            if isinstance(node.get("class_path"), str):
                out["class_path"] = node["class_path"]
            node = node[key]
            if depth == len(keys) or not isinstance(node, dict):
                out[key] = node
                break
            out = out.setdefault(key, {})
    return result


def _keys(config: Mapping[str, Any], name: str) -> list[Any]:
    """Keys under which a configuration holds an option: classes have theirs in init_args, callbacks are a list."""
    keys: list[Any] = []
    node: Any = config
    for part in name.split("."):
        if isinstance(node, list) and node:
            keys.append(len(node) - 1)  # on the command line, options of callbacks are those of the last one
            node = node[-1]
        if isinstance(node, dict) and part not in node and isinstance(node.get("init_args"), dict):
            keys.append("init_args")
            node = node["init_args"]
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"--{name} is not an option of this run")
        keys.append(part)
        node = node[part]
    return keys
