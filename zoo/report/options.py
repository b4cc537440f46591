"""Options of a run: what its recipe does not say, and what tells several runs apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from zoo.sharing.training import LEFT_OUT

MOST_OPTIONS = 2000  # of one configuration
DEEPEST = 20  # levels of a configuration
ABSENT = "-"


class Change(NamedTuple):
    """An option whose value is not that of the recipe.

    Attributes:
        option: name as on the command line.
        recipe: value in the recipe; None if the recipe does not set it.
        value: value in the run.
    """

    option: str
    recipe: str | None
    value: str


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Options by their names on the command line, with values as text.

    A class is the value of its option; a callback in a list is an option of its own, `trainer.callbacks.SampleLogger`.
    Sections of the place of a run are left out.

    Args:
        config: configuration, nested.
    """
    kept = {name: value for name, value in config.items() if name not in LEFT_OUT}
    return dict(islice(_leaves(kept, "", 0), MOST_OPTIONS))


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > DEEPEST:
        yield name, "…"
    elif isinstance(value, Mapping):
        if "class_path" in value:
            yield name, class_name(value["class_path"])
            value = value.get("init_args") or {}
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for one in value:
            label = class_name(one["class_path"]) if isinstance(one, Mapping) and "class_path" in one else ""
            yield from _leaves(one, f"{name}.{label}" if label else name, depth + 1)
    else:
        yield name, as_text(value)


def class_name(path: Any) -> str:
    """The last part of an import path."""
    return str(path).rpartition(".")[2]


def as_text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e15 else repr(value)
    if isinstance(value, (list, tuple)):
        more = ", …" if len(value) > 20 else ""
        return f"[{', '.join(str(one) for one in value[:20])}{more}]"
    return str(value)


def merged(recipes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Options of stacked recipes; those of a class that a later recipe replaces are left out."""
    options: dict[str, str] = {}
    for recipe in recipes:
        for name, value in flatten(_with_classes(recipe)).items():
            replaced = name in ("model", "data") and options.get(name, value) != value
            if replaced or name.startswith("trainer.callbacks."):
                options = {k: v for k, v in options.items() if not k.startswith(f"{name}.")}
            options[name] = value
    return options


def _with_classes(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in which a class that is given by its name alone is a mapping, as in the configuration of a run."""
    return {
        key: {"class_path": value} if key in ("model", "data") and isinstance(value, str) else value
        for key, value in recipe.items()
    }


def changed_options(recipe: Mapping[str, str], run: Mapping[str, str], typed: Sequence[str] = ()) -> list[Change]:
    """Options of a run that are not those of its recipe, callbacks that were added, and those that it lacks.

    Args:
        recipe: options of the recipe, see `merged`.
        run: all options of the run, see `flatten`.
        typed: names of options that were typed, which count even if the recipe does not set them.
    """
    names = [name for name in run if name in recipe or name in typed]
    changes = [Change(name, recipe.get(name), run[name]) for name in names if not same(recipe.get(name), run[name])]
    callbacks = [name for name in {**recipe, **run} if name.startswith("trainer.callbacks.") and name.count(".") == 2]
    added = [Change(name, None, run[name]) for name in callbacks if name not in recipe and recipe]
    return [*changes, *added, *(Change(name, recipe[name], ABSENT) for name in callbacks if name not in run)]


def differing_options(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Options in which runs differ, each with its value in every run.

    Of a callback that not all runs have, the options are left out.

    Args:
        runs: options of each run, see `flatten`.
    """
    found = dict.fromkeys(name for run in runs for name in run)
    names = [name for name in found if not (owner := _callback_of(name)) or all(owner in run for run in runs)]
    rows = [(name, [run.get(name, ABSENT) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if any(not same(values[0], value) for value in values[1:])]


def _callback_of(name: str) -> str:
    """The callback that an option is of, `trainer.callbacks.SampleLogger`; empty for other options."""
    parts = name.split(".")
    return ".".join(parts[:3]) if name.startswith("trainer.callbacks.") and len(parts) > 3 else ""


def same(first: str | None, second: str | None) -> bool:
    """Whether two values as text are equal, numbers as numbers and classes by their names."""
    if first is None or second is None or first == second:
        return first == second
    try:
        return float(first) == float(second)
    except ValueError:
        return first.strip() == second.strip() or _is_class(first, second)


def _is_class(first: str, second: str) -> bool:
    """Whether one text is an import path of the other."""
    longer, shorter = sorted((first, second), key=len, reverse=True)
    return shorter.isidentifier() and longer.endswith(f".{shorter}")
