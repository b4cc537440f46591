"""The structure that a checkpoint must have, checked before anything in it is used.

A file can hold any plain values and tensors. What Lightning and this package read of them is declared here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.format import parse_description
from zoo.errors import UserError, shown

Check = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


def _mapping(check: Check = lambda _: True, keys: type | tuple[type, ...] = str) -> Check:
    return lambda value: (
        isinstance(value, Mapping) and all(isinstance(key, keys) for key in value) and all(map(check, value.values()))
    )


def _entries(**checks: Check) -> Check:
    return lambda value: (
        isinstance(value, Mapping) and checks.keys() <= value.keys() and all(checks[k](value[k]) for k in checks)
    )


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _name(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1000


def _version(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)*[\w.+-]{0,40}", value) is not None


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


_group = _entries(params=_list(_count))
_optimizer = _entries(state=_mapping(_mapping(), keys=int), param_groups=_list(_group))
_window = _optional(_entries(sums=_mapping(_tensor), count=lambda value: isinstance(value, (int, float))))

#: Entries of a checkpoint beside its weights and those of `zoo.checkpoints.format`: check, and what is expected.
ENTRIES: dict[str, tuple[Check, str]] = {
    "model_class": (_name, "the import path of a class"),
    "hparams_name": (_name, "the name of an argument"),
    "data": (_optional(_mapping()), "a mapping"),
    "versions": (_optional(_mapping()), "a mapping of names to versions"),
    "monitor": (_optional(_mapping()), "a metric, its mode and its best value"),
    "hyper_parameters": (_optional(_mapping()), "a mapping of names to values"),
    "pytorch-lightning_version": (_version, "a version"),
    "epoch": (_count, "a whole number"),
    "global_step": (_count, "a whole number"),
    "loops": (_mapping(_mapping()), "a mapping of names to states of loops"),
    "callbacks": (_mapping(_mapping()), "a mapping of names to states of callbacks"),
    "optimizer_states": (_list(_optimizer), "a list of states of optimizers"),
    "lr_schedulers": (_list(_mapping()), "a list of states of schedulers"),
    "training": (_entries(random=_list(_mapping()), window=_window), "the random states and the window of a training"),
    "logged": (_mapping(_count), "a mapping of loggers to numbers of rows"),
}
#: Entries without which no training is resumed.
TRAINING = ("loops", "optimizer_states", "lr_schedulers", "callbacks")


def check_structure(checkpoint: Mapping[str, Any]) -> None:
    """Checks every entry of a checkpoint that is read.

    Raises:
        UserError: an entry is damaged.
    """
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError("it has no state_dict")
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not (_is_whole(value) or name.endswith("_extra_state")):
            raise UserError(f"{shown(name)} in its state_dict is {shown(value)}, not the name of a whole tensor")
    for name, (check, expected) in ENTRIES.items():
        if name in checkpoint and not check(checkpoint[name]):
            raise UserError(f"{name} is {shown(checkpoint[name])}, not {expected}")
    parse_description(checkpoint)


def _is_whole(value: Any) -> bool:
    """Whether a value is a tensor with all of its numbers in memory; a view can claim more than its file holds."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.is_nested is False and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def check_like(saved: Any, own: Any, where: str, complete: bool = False) -> None:
    """Checks that a saved state has the types of an object's own state.

    Args:
        saved: state in a checkpoint.
        own: what `state_dict` of the object returns that is to be restored. None can be of any type.
        where: name of the state, for the message.
        complete: whether the saved state must have all entries of the own one.

    Raises:
        UserError: a value is of another type, or missing.
    """
    kinds = {bool: bool, int: int, float: (int, float), str: str, Tensor: Tensor, Mapping: Mapping}
    kinds |= {list: (list, tuple), tuple: (list, tuple)}  # type: ignore[dict-item]
    kind: Any = next((accepted for base, accepted in kinds.items() if isinstance(own, base)), object)
    if not isinstance(saved, kind) or (isinstance(saved, bool) and kind in (int, (int, float))):
        raise UserError(f"{where} is {shown(saved)}, not a {type(own).__name__}")
    if isinstance(own, Tensor) and own.shape != saved.shape:
        raise UserError(f"{where} has the shape {tuple(saved.shape)}, not {tuple(own.shape)}")
    if isinstance(own, Mapping):
        if complete and (lacking := own.keys() - saved.keys()):
            raise UserError(f"{where} lacks {min(lacking)}")
        for key in own.keys() & saved.keys():
            check_like(saved[key], own[key], f"{where}.{key}", complete)
    elif isinstance(own, (list, tuple)):
        for index, pair in enumerate(zip(saved, own, strict=False)):
            check_like(*pair, f"{where}.{index}", complete)


def check_finite(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Checks that weights are finite, where those of a model that has just been built are.

    Raises:
        UserError: a tensor holds NaN or Inf.
    """
    for name, value in own.items():
        if not _is_finite(state.get(name)) and _is_finite(value):
            raise UserError(f"{name} in it holds NaN or Inf: take a checkpoint from before its training diverged")


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())
