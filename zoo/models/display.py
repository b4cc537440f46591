"""What a notebook and a terminal show of a model."""

from __future__ import annotations

import inspect
from textwrap import indent
from typing import Any

from torch import nn

from zoo.checkpoints.format import Origin, TrainingData
from zoo.plotting.notebook import table

NOT_OPTIONS = ("input_shape", "num_classes")


def with_parameters(model: nn.Module) -> dict[str, nn.Module]:
    """The direct submodules that have parameters, which metrics do not, by name."""
    return {name: module for name, module in model.named_children() if any(True for _ in module.parameters())}


def describe(model: Any) -> dict[str, str]:
    """What a person wants to know of a model, in rows of a name and a value.

    Args:
        model: model of the zoo or of a plugin.
    """
    rows = {
        f"{name}": f"{type(module).__name__}, {sum(p.numel() for p in module.parameters()):,} parameters"
        for name, module in with_parameters(model).items()
    }
    if shape := getattr(model, "input_shape", None):
        rows["input"] = " x ".join(map(str, shape))
    if classes := _classes(model):
        rows["classes"] = classes
    if options := _options(model):
        rows["options"] = ", ".join(f"{name} {value}" for name, value in options.items())
    origin: Origin | None = getattr(model, "origin", None)
    if origin is not None:
        rows["loaded from"] = str(origin.path)
        if origin.monitor and origin.monitor.get("best") is not None:
            rows["best in its run"] = f"{origin.monitor['metric']} {origin.monitor['best']:.4g}"
    return rows


def to_html(model: Any) -> str:
    """The description of a model as a table for a notebook."""
    return table(describe(model), type(model).__name__)


def to_text(model: nn.Module) -> str:
    """The modules with parameters, as torch prints a module."""
    parts = [indent(f"({name}): {module!r}", "  ") for name, module in with_parameters(model).items()]
    return "\n".join([f"{type(model).__name__}(", *parts, ")"])


def _classes(model: Any) -> str:
    names = getattr(model, "trained_on", TrainingData()).class_names
    count = getattr(model, "num_classes", 0)
    return ", ".join(names) if names else str(count) if count else ""


def _options(model: Any) -> dict[str, Any]:
    """Hyperparameters that are not the defaults of the model's class or of the class that it passes them on to."""
    defaults: dict[str, Any] = {}
    for cls in type(model).__mro__:
        own = vars(cls).get("__init__")
        for name, parameter in inspect.signature(own).parameters.items() if callable(own) else ():
            defaults.setdefault(name, parameter.default)
    return {
        name: _short(value)
        for name, value in model.hparams.items()
        if name not in NOT_OPTIONS and value != defaults.get(name, inspect.Parameter.empty)
    }


def _short(value: Any) -> Any:
    """A network's description as `Name(option=value)`; other values as they are."""
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    arguments = ", ".join(f"{name}={argument}" for name, argument in (value.get("init_args") or {}).items())
    return f"{value['class_path'].rpartition('.')[2]}({arguments})"
