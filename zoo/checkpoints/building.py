"""Building a model from the contents of a checkpoint: its class, called with the arguments that the class declares.

Lightning's own loader takes further entries of the hyperparameters for instructions, `_instantiator` among them, which
names a function to be imported and called. Here everything but declared arguments of the declared types is left out.
"""

from __future__ import annotations

import inspect
import math
import threading
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from zoo.checkpoints.structure import check_finite
from zoo.errors import UserError, shown

#: Most numbers in one sample; 3 x 4096 x 4096 is below.
LARGEST_SAMPLE = 2**26


def build_model(cls: Any, checkpoint: Mapping[str, Any], strict: bool | None = None, **handed: Any) -> Any:
    """Builds a LightningModule and loads its state.

    Args:
        cls: class of the model.
        checkpoint: contents of the file, as `zoo.checkpoints.reading.read_checkpoint` returns them.
        strict: whether the state must fit exactly (default: as the model has it).
        **handed: arguments of the class, instead of those in the checkpoint.

    Raises:
        UserError: an argument is of another type than the class declares, the model would be much larger than its
            file, or a weight is not finite.
    """
    arguments = {**stored_arguments(cls, checkpoint, handed), **handed}
    with _no_larger_than(checkpoint["state_dict"]):
        model = cls(**arguments)
        model.configure_model()
    check_finite(checkpoint["state_dict"], model.state_dict())
    contents = dict(checkpoint)
    model.on_load_checkpoint(contents)  # which may change them
    model.load_state_dict(contents["state_dict"], strict=model.strict_loading if strict is None else strict)
    return model


def stored_arguments(cls: type, checkpoint: Mapping[str, Any], handed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class that a checkpoint holds and that are not handed in; others are left out.

    Raises:
        UserError: a value is not of the type that the class declares, or a sample is too large.
    """
    declared, open_ended = declared_arguments(cls)
    values = checkpoint.get("hyper_parameters") or {}
    if (name := checkpoint.get("hparams_name")) in declared:  # save_hyperparameters(name) stores the contents of one
        values = {name: values}
    kept = {
        name: value
        for name, value in values.items()
        if name not in handed and (name in declared or (open_ended and not name.startswith("_")))
    }
    for name, value in kept.items():
        if not accepts(declared.get(name, Any), value):
            raise UserError(f"its hyperparameter {name} is {shown(value)}, which {cls.__name__} does not take")
    shape = kept.get("input_shape")
    if isinstance(shape, Sequence) and math.prod(shape) > LARGEST_SAMPLE:
        raise UserError(f"its hyperparameter input_shape has more than {LARGEST_SAMPLE} numbers")
    return kept


def declared_arguments(cls: type) -> tuple[dict[str, Any], bool]:
    """Names and types of a class's arguments, with those that it hands on by **kwargs to its bases.

    Returns:
        Type hints by name, and whether the class takes any other name, too.
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is LightningModule:
            return found, True
        if (init := base.__dict__.get("__init__")) is None:
            continue
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # names that are imported for a type checker only
            hints = {}
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, hints.get(parameter.name, Any))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found, False


def accepts(hint: Any, value: Any) -> bool:
    """Whether a plain value is of a type. A class or a factory can be described by a name or a mapping."""
    origin, inner = get_origin(hint), get_args(hint)
    kind = origin or hint
    if hint is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(accepts(one, value) for one in inner)
    if kind is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (bool, str, types.NoneType):
        return isinstance(value, kind)
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return isinstance(value, (list, tuple)) and all(accepts(inner[0] if inner else Any, one) for one in value)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(accepts(inner[1] if inner else Any, one) for one in value.values())
    return isinstance(value, (str, Mapping, kind if isinstance(kind, type) else str))


@contextmanager
def _no_larger_than(state: Mapping[str, Any]) -> Iterator[None]:
    """Stops the building of a model that has many more parameters than a state has bytes.

    A small file can ask for a large model, which would take all memory, or all day, before its shapes are compared.
    """
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    numbers, parameters = 2**26 + 4 * sum(storages.values()), 1000 + 4 * len(tensors)
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal numbers, parameters
        if threading.get_ident() != thread or parameter is None or nn.parameter.is_lazy(parameter):
            return
        numbers, parameters = numbers - parameter.numel(), parameters - 1
        if min(numbers, parameters) < 0:
            raise UserError("its hyperparameters are of a much larger model than the one whose weights it holds")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
