"""Finding recipes, and checking that they are valid YAML, before the parser reads them.

The parser knows the options, but neither the file nor the line of a mistake, and it silently takes the last one of
duplicate keys.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UserError, as_word, did_you_mean, nearest, shown
from zoo.registry import entries, recipe_files

#: Sections of every recipe that must be mappings.
SECTIONS = ("trainer", "run", "wandb")
#: Keys of a section that names a class.
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
#: Values in a file with its aliases expanded, as the parser does: nested aliases of a few lines can be billions.
MOST_VALUES = 10_000
LONG_TEXT = 1000  # characters that count as one value

#: Packages whose classes a configuration may name that the user has not named.
TRUSTED = ("zoo.", "lightning.pytorch.", "torch.optim.", "torch.nn.", "torchvision.transforms.", "torchvision.models.")


def resolve_recipes(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Replaces bare recipe names after --config by paths to the shipped files, and checks all files.

    Returns:
        Arguments, and the name of the run: the first recipe's without its ending.

    Raises:
        UserError: there is no such file or recipe, or it is not a configuration.
    """
    resolved, first, expected = list(args), None, False
    for index, argument in enumerate(resolved):
        option, _, inline = argument.partition("=")
        if expected or (option in ("--config", "-c") and inline):
            name = argument if expected else inline
            path = recipe_path(name)
            check_recipe(path)
            first = first or _name_of_run(Path(name))
            resolved[index] = path if expected else f"{option}={path}"
            expected = False
        else:
            expected = argument in ("--config", "-c")
    return resolved, first


def is_given(section: str, name: str, args: Sequence[str]) -> bool:
    """Whether an option is typed, or set by a file after --config.

    Args:
        section: section of a recipe, such as "trainer".
        name: option in it.
        args: arguments, in which recipes are paths already.
    """
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        option, _, inline = argument.partition("=")
        if option.removesuffix("+") == f"--{section}.{name}":
            return True
        if option in ("--config", "-c"):
            recipe = yaml.safe_load(Path(inline or following).read_text(encoding="utf-8")) or {}
            if name in (recipe.get(section) or {}):
                return True
    return False


def with_config_of_run(args: list[str]) -> list[str]:
    """Adds the config.yaml of a checkpoint's run to the arguments, if no configuration and no model are given."""
    if args[0] == "fit" or any(a.split("=")[0] in ("--config", "-c", "--model") for a in args):
        return args
    for option, following in zip(args, [*args[1:], ""], strict=True):
        name, _, inline = option.partition("=")
        config = Path(inline or following).parent.parent / "config.yaml"
        if name == "--ckpt_path" and config.is_file():
            _check_imports(config)
            return [args[0], "--config", str(config), *args[1:]]
    return args


def _check_imports(config: Path) -> None:
    """Raises a `UserError` if a configuration that the user has not named would import anybody's code.

    It lies beside a checkpoint, and may have come with it.
    """
    check_recipe(str(config))
    if (text := foreign_import(config)) is not None:
        raise UserError(
            f"{config} beside the checkpoint names {shown(text)}, which is not of the zoo: it is imported only if you "
            f"name the file, --config {as_word(config)}"
        )


def foreign_import(config: Path) -> str | None:
    """First text in a configuration by which the parser may import what is not of the zoo or its libraries."""
    known = {entry.import_path for entry in entries("models", "networks", "data", "callbacks")}
    texts = _texts(yaml.safe_load(config.read_text(encoding="utf-8")))
    return next((text for text in texts if text not in known and _imports(text)), None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(one)


def _imports(text: str) -> bool:
    """Whether the parser may import something for a text: an import path, or a further configuration."""
    with suppress(OSError, ValueError):  # too long for the name of a file, or one that may not be read
        if Path(text).is_file():
            with Path(text).open("rb") as file:
                content = file.read(2**20)
            return b"class_path" in content and b"\0" not in content  # a checkpoint is no further configuration
    if "class_path" in text:
        return True
    module = text.partition(".")[0]
    return bool(
        re.fullmatch(r"\w+(\.\w+)+", text) and not text.startswith(TRUSTED) and importlib.util.find_spec(module)
    )


def _name_of_run(config: Path) -> str:
    """Name of the recipe, or of the run in whose folder the configuration is."""
    return config.parent.parent.name if config.parent.name.startswith("version_") else config.stem


def recipe_path(name: str) -> str:
    """Path to a configuration: a file, or a recipe by its bare name."""
    if Path(name).is_file():
        return name
    shipped = recipe_files()
    if name in shipped:
        return str(shipped[name])
    raise UserError(f"--config {name} is neither a file nor a recipe{did_you_mean(name, sorted(shipped))}")


def check_recipe(path: str) -> None:
    """Raises a `UserError` that names file and line, unless the file is a valid configuration."""
    for name, value in _items(read_mapping(path, "a recipe", "model: GAN")):
        if name in SECTIONS and not _is_null(value):
            _require_mapping(path, value, name)
        if name in ("model", "data"):
            _check_class(path, name, value)
        for callback in _callbacks(name, value):
            _check_class(path, "trainer.callbacks", callback)


def read_mapping(path: str, what: str, example: str) -> yaml.Node:
    """Root node of a YAML file of lines 'name: value', none of which appears twice.

    Args:
        path: path to the file.
        what: kind of file, for messages.
        example: line with which such a file may begin.

    Raises:
        UserError: the file is no such file; the message names the line.
    """
    node = _read(path, what)
    if node is None:
        raise UserError(f"{path} is empty; {what} begins with a line such as '{example}'")
    _require_mapping(path, node, what)
    for where, twice in _duplicates(node, set()):
        raise UserError(f"{place(path, twice.start_mark)}: {where} appears twice; remove one of them")
    return node


def _read(path: str, what: str) -> yaml.Node | None:
    """Root node of the file's only document."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8; save it in this encoding") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        check_expansion(node, path)
        yaml.safe_load(text)  # finds unknown tags
        return node
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{place(path, mark)}: {_problem(error)}") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a date of the 13th month; a key that is a list; depth
        raise UserError(f"{path} is not a valid {what.removeprefix('a ')}: {error}") from error


def check_expansion(node: yaml.Node | None, name: str) -> None:
    """Raises a `UserError` if a document is too large once its aliases are expanded."""
    if node is not None and _count_values(node, {}) > MOST_VALUES:
        raise UserError(f"{name} has more than {MOST_VALUES:,} values, counting each alias as what it stands for")


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of values below a node once its aliases are expanded, long texts as several; infinite for a circle."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value) / LONG_TEXT
    if id(node) not in known:
        known[id(node)] = math.inf  # what is found again below itself
        children = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count_values(child, known) for child in children)
    return known[id(node)]


def place(path: str, mark: yaml.Mark | None) -> str:
    """File, line and column of a mistake."""
    return path if mark is None else f"{path}, line {mark.line + 1}, column {mark.column + 1}"


def _problem(error: yaml.MarkedYAMLError) -> str:
    """Description of a syntax error: ours for tabs, else the parser's."""
    mark = error.problem_mark
    if r"'\t'" in (error.problem or ""):
        return "a tab, but YAML needs spaces"
    problem = (error.problem or "not YAML").replace("the tag 'tag:yaml.org,2002:", "the tag '!!")
    context = error.context_mark
    if context is not None and mark is not None and context.line != mark.line:
        problem += f" ({error.context}, which starts in line {context.line + 1})"
    return problem


def _items(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), value) for key, value in node.value)


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _require_mapping(path: str, node: yaml.Node, what: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise UserError(f"{place(path, node.start_mark)}: {what} must be lines of 'name: value', not {found}")


def _duplicates(node: yaml.Node, seen: set[int]) -> Iterator[tuple[str, yaml.Node]]:
    """Duplicate keys of a mapping, with the node of the second one."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    children = [value for _, value in _items(node)] if isinstance(node, yaml.MappingNode) else node.value
    keys: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode) and key.value in keys:
            yield key.value, key
        keys.add(str(key.value))
    for child in children:
        yield from _duplicates(child, seen)


def _callbacks(name: str, value: yaml.Node) -> list[yaml.Node]:
    given = next((v for key, v in _items(value) if key == "callbacks"), None) if name == "trainer" else None
    return given.value if isinstance(given, yaml.SequenceNode) else []


def _check_class(path: str, name: str, node: yaml.Node) -> None:
    """Checks a section that names a class: a name, or a mapping of `class_path` and `init_args`."""
    for key, value in _items(node):
        if key not in CLASS_KEYS and (hint := nearest(key, CLASS_KEYS)):
            raise UserError(f"{place(path, value.start_mark)}: {key} is not a key of {name}{hint}")
        if key == "init_args" and not _is_null(value):
            _require_mapping(path, value, f"{name}.init_args")
