"""What is in the zoo, plugins included: models, data modules, callbacks, recipes and weights, with a line each.

A package adds its own by declaring the entry point group `zoo.plugins`; each entry point names a module (whose public
LightningModules, LightningDataModules and Callbacks are taken) or one such class.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata, resources
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from zoo.errors import UserError

BUILT_IN = ("zoo", "zoo.datamodules", "zoo.callbacks")
KINDS: dict[str, type] = {"models": LightningModule, "data": LightningDataModule, "callbacks": Callback}


@dataclass(frozen=True)
class Entry:
    """One thing in the zoo: its kind, its name, one line about it, and the class where it is one."""

    kind: str
    name: str
    summary: str
    target: type | None = None


def load_plugins() -> list[Any]:
    """Loads the entry points `zoo.plugins`; one that fails is named in a warning, and the rest are loaded."""
    loaded = []
    for point in metadata.entry_points(group="zoo.plugins"):
        try:
            loaded.append(point.load())
        except Exception as error:  # whatever a plugin raises, the rest must go on
            message = f"the plugin {point.name} ({point.value}) does not load: {type(error).__name__}: {error}"
            warnings.warn(message, stacklevel=2)
    return loaded


def catalog() -> list[Entry]:
    """Everything in the zoo, in the order of the kinds, each kind sorted by name."""
    entries: list[Entry] = []
    for source in [*map(import_module, BUILT_IN), *load_plugins()]:
        entries += _classes(source)
    for kind, folder, ending in (("recipes", "zoo.configs", ".yaml"), ("weights", "zoo.weights", ".safetensors")):
        for file in resources.files(folder).iterdir():
            if file.name.endswith(ending):
                entries.append(Entry(kind, file.name, _describe_file(kind, file)))
    order = [*KINDS, "recipes", "weights"]
    return sorted(dict.fromkeys(entries), key=lambda entry: (order.index(entry.kind), entry.name))


def find_class(path: str, entries: Iterable[Entry] | None = None) -> type:
    """The class of this import path or short name, if it is in the zoo; nothing is imported for the asking.

    Raises:
        UserError: it is not in the zoo.
    """
    known = {e.name: e.target for e in (entries or catalog()) if e.target is not None}
    for name, target in known.items():
        if path in (name, f"{target.__module__}.{target.__qualname__}"):
            return target
    raise UserError(f"{path} is not in the zoo{did_you_mean(path.rsplit('.', 1)[-1], known)}")


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> str:
    """The end of a message about an unknown name: the known one that looks like it, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"; did you mean {near[0]}?" if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that looks like it, or all of them."""
    known = list(known)
    return nearest(name, known) or f"; there are {', '.join(known)}"


def _classes(source: Any) -> list[Entry]:
    """The models, data modules and callbacks among a module's public classes, or the one class that it is."""
    if not isinstance(source, ModuleType):
        candidates = [source]
    elif hasattr(source, "__all__"):
        candidates = [getattr(source, name) for name in source.__all__]
    else:  # what is defined in its package: a module's imports are not its own
        package = source.__name__.split(".")[0]
        public = [value for name, value in vars(source).items() if not name.startswith("_")]
        candidates = [value for value in public if getattr(value, "__module__", "").split(".")[0] == package]
    return [
        Entry(kind, candidate.__name__, (inspect.getdoc(candidate) or "").split("\n")[0], candidate)
        for candidate in candidates
        for kind, base in KINDS.items()
        if inspect.isclass(candidate) and issubclass(candidate, base) and not _is_base(candidate)
    ]


def _is_base(candidate: type) -> bool:
    """Whether methods are left for a subclass to implement (Lightning's classes are no ABCs, so Python cannot say)."""
    members = (inspect.getattr_static(candidate, name, None) for name in dir(candidate))
    return any(getattr(member, "__isabstractmethod__", False) for member in members)


def _describe_file(kind: str, file: Any) -> str:
    if kind == "recipes":
        lines = file.read_text(encoding="utf-8").split("\n")
        return lines[0].lstrip("# ") if lines[0].startswith("#") else ""
    data = file.read_bytes()
    return f"{len(data) / 1024:.0f} KiB, sha256 {hashlib.sha256(data).hexdigest()[:8]}"
