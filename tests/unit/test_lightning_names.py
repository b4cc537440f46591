"""The private names of other libraries that `zoo._lightning` uses, checked against the installed versions."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import zoo.callbacks
import zoo.datamodules
from zoo import _lightning
from zoo._lightning import PRIVATE_NAMES

#: Access to private names of Lightning, jsonargparse, wandb and torch, in any form that the package has used.
PRIVATE_ACCESS = re.compile(
    r"trainer\._[a-z]|strategy\._[a-z]|optimizer\._on|from \S+ import .*\b_[A-Z]|\._wandb_init|_log_hyperparams"
    # A private name of the list as an attribute of anything but `self`.
    rf"|(?<!self)\.(?:{'|'.join(name for _, name, _ in PRIVATE_NAMES if name.startswith('_'))})\b"
)


def resolve(path: str) -> Any:
    """A module, class or function by its import path."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


def has_name(owner: Any, name: str) -> bool:
    """Whether an attribute exists, or is set on instances by the source of the class or of one of its bases."""
    if hasattr(owner, name):
        return True
    classes = [base for base in inspect.getmro(owner) if base is not object] if inspect.isclass(owner) else []
    pattern = re.compile(rf"\bself\.{name}\b|[\"']{name}[\"']")
    return any(pattern.search(inspect.getsource(base)) for base in classes)


def missing(names: Any) -> list[str]:
    """Entries of `PRIVATE_NAMES` whose owner or name does not exist."""
    gone = []
    for path, name, user in names:
        try:
            present = has_name(resolve(path), name)
        except (ImportError, AttributeError):
            present = False
        if not present:
            gone.append(f"{path}.{name}, used by zoo._lightning.{user}")
    return gone


def test_the_installed_libraries_have_every_private_name():
    gone = missing(PRIVATE_NAMES)
    assert not gone, "not in the installed versions:\n" + "\n".join(gone)


def test_every_missing_name_is_reported():
    absent = (
        ("lightning.pytorch.Trainer", "_no_such_attribute", "one"),
        ("lightning.pytorch.NoSuchClass", "_optimizers", "two"),
        ("no_such_library.Class", "_name", "three"),
    )
    present = ("lightning.pytorch.core.optimizer.LightningOptimizer", "step", "four")
    reported = [f"{path}.{name}, used by zoo._lightning.{user}" for path, name, user in absent]
    assert missing([*absent, present]) == reported


@pytest.mark.parametrize("user", sorted({user for *_, user in PRIVATE_NAMES}))
def test_the_user_of_a_private_name_exists(user):
    assert callable(getattr(_lightning, user))


def test_no_other_file_uses_a_private_name():
    folders = [Path(package.__path__[0]) for package in (zoo, zoo.callbacks, zoo.datamodules)]
    files = sorted({path for folder in folders for path in folder.rglob("*.py")})
    assert len(files) > 80
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in files
        if path.name != "_lightning.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE_ACCESS.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "trainer._loggers = []",
        "self.trainer.strategy._ddp_kwargs['x'] = 1",
        "optimizer._on_before_step = nothing",
        "from lightning.pytorch.cli import _Namespace",
        "logger._wandb_init.pop('anonymous')",
        "module._compiled_call_impl is None",
    ],
)
def test_the_search_finds_private_access(line):
    assert PRIVATE_ACCESS.search(line)
