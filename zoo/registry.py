"""What is in the zoo, with a line about each: models, networks, data, callbacks, recipes, spaces, weights and plugins.

Names and summaries of the built-in classes are read from their source files, so that listing them imports neither
torch nor Lightning. A package adds its own classes by the entry point group `zoo.plugins`: each entry point names a
module, whose public LightningModules, LightningDataModules, Callbacks and networks are registered, or one such class.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from zoo.errors import UserError, did_you_mean

#: Package whose `__all__` names the built-in classes of each kind.
BUILT_IN = {"models": "zoo", "networks": "zoo.models", "data": "zoo.datamodules", "callbacks": "zoo.callbacks"}
#: Public names in these packages that cannot be built from the command line alone.
NOT_LISTED = frozenset({"Augment", "PerSample", "InMemoryDataModule"})
#: Kinds of entries, in the order in which they are listed.
KINDS = (*BUILT_IN, "trained models", "recipes", "spaces", "weights")
#: Metrics of a trained model that `list` shows, the first one that it has.
SHOWN_METRICS = ("test/acc", "test/fd", "test/w1", "test/exact_match", "val/perplexity", "val/acc")
_CLASS = re.compile(r'^class (\w+)\b[^"]*?:\n    """(.*?)(?:"""|$)', re.MULTILINE)


class Entry(NamedTuple):
    """One thing in the zoo.

    Attributes:
        kind: one of `KINDS`.
        name: short name, as typed on the command line.
        summary: one line about it.
        module: import path of the module that defines the class; empty for files.
    """

    kind: str
    name: str
    summary: str
    module: str = ""

    @property
    def import_path(self) -> str:
        """Module and name of a class."""
        return f"{self.module}.{self.name}"

    def load(self) -> type:
        """Imports the class."""
        return getattr(import_module(self.module), self.name)


def entries(*kinds: str) -> list[Entry]:
    """Everything in the zoo, or everything of some kinds, ordered by kind and name."""
    wanted = kinds or KINDS
    found = [entry for kind in wanted for entry in (*_built_in(kind), *_files(kind))]
    if not set(wanted).isdisjoint(BUILT_IN):
        found += [entry for plugin in load_plugins() for entry in _plugin_entries(plugin) if entry.kind in wanted]
    return sorted(dict.fromkeys(found), key=lambda entry: (KINDS.index(entry.kind), entry.name))


def load_all() -> None:
    """Imports every class, plugins included, so that the command line's parser knows them by their short names."""
    for entry in entries(*BUILT_IN):
        entry.load()


def find_class(path: str, *kinds: str) -> type:
    """Imports a class of the zoo or of a plugin, by its name or import path. Nothing else is ever imported.

    Args:
        path: name or import path of the class.
        *kinds: kinds of classes among which it is looked for; all by default.

    Raises:
        UserError: there is no such class in the zoo.
    """
    known = entries(*(kinds or BUILT_IN))
    for entry in known:
        if path in (entry.name, entry.import_path):
            return entry.load()
    raise UserError(f"{path} is not in the zoo{did_you_mean(path.rsplit('.', 1)[-1], [e.name for e in known])}")


def load_plugins() -> list[Any]:
    """Loads the entry points `zoo.plugins`. One that fails is named in a warning; the others are loaded."""
    loaded = []
    for point in _plugin_points(tuple((path, _changed(path)) for path in sys.path)):
        try:
            loaded.append(point.load())
        except Exception as error:  # a plugin can raise anything
            message = f"the plugin {point.name} ({point.value}) does not load: {type(error).__name__}: {error}"
            warnings.warn(message, stacklevel=2)
    return loaded


def recipe_files() -> dict[str, Path]:
    """Recipes and overlays that ship with the package, by file name."""
    folders = ("zoo.configs", "zoo.configs.overlays")
    return {file.name: file for folder in folders for file in _package_files(folder, ".yaml")}


def space_files() -> dict[str, Path]:
    """Search spaces that ship with the package, by file name."""
    return {file.name: file for file in _package_files("zoo.configs.spaces", ".yaml")}


def trained_folders() -> dict[str, Path]:
    """Folders of the trained models that ship with the package, by name."""
    root = Path(import_module("zoo.weights").__path__[0])
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def trained_results() -> list[dict[str, str]]:
    """Rows of `zoo/weights/results.csv`: a metric of a trained model each, with floor and number of samples."""
    import csv

    path = Path(import_module("zoo.weights").__path__[0]) / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=1)
def _plugin_points(path: tuple[tuple[str, int], ...]) -> tuple[metadata.EntryPoint, ...]:
    """Entry points `zoo.plugins` of the installed packages; a command asks for them several times.

    Args:
        path: folders that Python imports from, each with the time of its last change.
    """
    return tuple(metadata.entry_points(group="zoo.plugins"))


def _changed(path: str) -> int:
    """Time of the last change of a folder, nanoseconds; 0 if there is no such folder."""
    try:
        return Path(path).stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


@cache
def _built_in(kind: str) -> tuple[Entry, ...]:
    """Public classes of a built-in package, found in its source files; these are read once."""
    return tuple(_find_built_in(kind))


def _find_built_in(kind: str) -> Iterator[Entry]:
    if kind not in BUILT_IN:
        return
    package = import_module(BUILT_IN[kind])
    public = set(package.__all__) - NOT_LISTED
    folder = Path(package.__path__[0])
    for path in (folder / "models" if kind == "models" else folder).rglob("*.py"):
        for name, summary in _CLASS.findall(path.read_text(encoding="utf-8")):
            if name in public:
                module = ".".join((package.__name__, *path.relative_to(folder).with_suffix("").parts))
                yield Entry(kind, name, summary.strip(), module)


def _files(kind: str) -> Iterator[Entry]:
    """Trained models with a metric, recipes and spaces with their first line, and weights with size and hash."""
    if kind in ("recipes", "spaces"):
        for name, file in (recipe_files() if kind == "recipes" else space_files()).items():
            first = file.read_text(encoding="utf-8").split("\n")[0]
            yield Entry(kind, name, first.lstrip("# ") if first.startswith("#") else "")
    elif kind == "trained models":
        results = trained_results()
        for name in trained_folders():
            yield Entry(kind, name, _summary_of([row for row in results if row["model"] == name]))
    elif kind == "weights":
        import hashlib

        for file in _package_files("zoo.weights", ".safetensors"):
            data = file.read_bytes()
            summary = f"{len(data) / 1024:.0f} KiB, sha256 {hashlib.sha256(data).hexdigest()[:8]}"
            yield Entry(kind, file.name, summary)


def _summary_of(results: list[dict[str, str]]) -> str:
    """Class, data and most telling metric of a trained model."""
    if not results:
        return ""
    by_metric = {row["metric"]: row for row in results}
    row = next((by_metric[name] for name in SHOWN_METRICS if name in by_metric), results[0])
    floor = f" (floor {float(row['floor']):.3g})" if row["floor"] else ""
    return f"{row['class']} on {row['data']}: {row['metric']} {float(row['value']):.3g}{floor}"


def _package_files(package: str, ending: str) -> Iterable[Path]:
    # Not by importlib.resources, which takes longer to import than everything else that `zoo list` does.
    return sorted(Path(import_module(package).__path__[0]).glob(f"*{ending}"))


def _plugin_entries(source: Any) -> Iterator[Entry]:
    """Models, networks, data modules and callbacks among a plugin's public classes, or the one class that it is."""
    import inspect

    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch import nn
    from torchmetrics import Metric

    if not isinstance(source, ModuleType):
        candidates = [source]
    elif hasattr(source, "__all__"):
        candidates = [getattr(source, name) for name in source.__all__]
    else:  # only what the plugin's own package defines, not what it imports
        package = source.__name__.split(".")[0]
        public = [value for name, value in vars(source).items() if not name.startswith("_")]
        candidates = [value for value in public if getattr(value, "__module__", "").split(".")[0] == package]
    # A class is of the first kind whose base it has: a LightningModule is an nn.Module, too.
    bases = {"models": LightningModule, "data": LightningDataModule, "callbacks": Callback, "networks": nn.Module}
    for candidate in candidates:
        if not inspect.isclass(candidate) or issubclass(candidate, Metric) or _is_abstract(candidate):
            continue
        kind = next((kind for kind, base in bases.items() if issubclass(candidate, base)), None)
        if kind is not None:
            summary = (inspect.getdoc(candidate) or "").split("\n")[0]
            yield Entry(kind, candidate.__name__, summary, candidate.__module__)


def _is_abstract(candidate: type) -> bool:
    """Whether abstract methods are left. Lightning's classes do not derive from ABC, so Python does not check."""
    import inspect

    members = (inspect.getattr_static(candidate, name, None) for name in dir(candidate))
    return any(getattr(member, "__isabstractmethod__", False) for member in members)
