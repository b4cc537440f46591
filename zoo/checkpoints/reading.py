"""Reading checkpoints of any model in the zoo. Nothing in a file is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from zoo.checkpoints.building import build_model
from zoo.checkpoints.format import FORMAT, Origin, TrainingData
from zoo.checkpoints.pretrained import is_pretrained, read_pretrained
from zoo.checkpoints.restoring import check_training_state
from zoo.checkpoints.structure import check_finite, check_structure
from zoo.errors import UserError, shown
from zoo.registry import find_class


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint with `weights_only=True`; its tensors are memory-mapped on the CPU.

    Args:
        path: path to a checkpoint, or to the folder of a saved model, see `zoo.checkpoints.pretrained`.

    Raises:
        UserError: the file is missing, damaged, not safe to load, or was written by a newer version.
    """
    if is_pretrained(path):
        checkpoint = read_pretrained(path)
    elif Path(path).is_file():
        checkpoint = _read_file(path)
    else:
        raise UserError(f"--ckpt_path {path} is not a file")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"{path} is not a checkpoint of a model: it has no state_dict")
    written = checkpoint.get("format", 0)
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of lightning-zoo (format {shown(written)}, and this one knows "
            f"{FORMAT}): pip install --upgrade lightning-zoo"
        )
    try:
        check_structure(checkpoint)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return checkpoint


def _read_file(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # arbitrary bytes raise arbitrary exceptions
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(f"{path} is not a checkpoint that can be read safely ({reason})") from error


def load_model(ckpt_path: str | Path, model: str | type | None = None, **handed: Any) -> Any:
    """Loads a model from its checkpoint, in eval mode, on the CPU.

    Args:
        ckpt_path: path to the checkpoint, or to the folder of a saved model.
        model: the model's class, or its name in the zoo or in a plugin; by default the class that the checkpoint names.
        **handed: arguments of the class that the checkpoint does not hold, such as a network of your own.

    Raises:
        UserError: the file is missing or does not hold a model of the zoo.
    """
    checkpoint = read_checkpoint(ckpt_path)
    name = model or checkpoint.get("model_class")
    if name is None:
        raise UserError(f"{ckpt_path} does not say which model it holds; name its class with --model")
    model_class: Any = name if isinstance(name, type) else find_class(str(name), "models")
    loaded = _build(ckpt_path, model_class, checkpoint, **handed).eval()
    loaded.origin = Origin(Path(ckpt_path), checkpoint.get("monitor"))
    return loaded


def load_as(cls: type, ckpt_path: str | Path, strict: bool | None = None, **handed: Any) -> Any:
    """Loads a model of a class from its checkpoint, on the CPU, in the mode in which the class builds it.

    Args:
        ckpt_path: see `load_model`.
        strict: whether the state must fit exactly (default: as the class has it).
        **handed: see `load_model`.

    Raises:
        UserError: see `load_model`.
    """
    return _build(ckpt_path, cls, read_checkpoint(ckpt_path), strict=strict, **handed)


def _build(path: str | Path, cls: type, checkpoint: Mapping[str, Any], **options: Any) -> Any:
    try:
        return build_model(cls, checkpoint, **options)
    except UserError as error:
        raise UserError(f"{path} cannot be loaded: {error}") from error
    except Exception as error:  # arbitrary arguments raise arbitrary exceptions
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # torch's first line says no more than that the state does not fit.
        reason = next((line for line in lines if not line.startswith("Error(s) in loading")), type(error).__name__)
        raise UserError(f"{path} does not hold a {cls.__name__} ({reason[:200]})") from error


def check_checkpoint(path: str | Path, model: LightningModule, data: object = None, resumes: bool = False) -> None:
    """Checks that a Trainer can load a checkpoint into a model, before anything is computed or written.

    Args:
        path: path to the checkpoint.
        model: model into which it is to be loaded.
        data: data module that the model is to be used on; None if it is not known.
        resumes: whether the training is resumed.

    Raises:
        UserError: see `read_checkpoint`; or the checkpoint holds another class, other shapes or another tokenizer, or
            the data has other classes.
    """
    checkpoint = read_checkpoint(path)
    if not re.match(r"[2-9]|\d\d", str(checkpoint.get("pytorch-lightning_version", ""))):
        raise UserError(f"{path} was not written by Lightning 2 or later; zoo.load reads the weights of such a file")
    own = type(model).__name__
    held = str(checkpoint.get("model_class", "")).rsplit(".", 1)[-1]
    if held and held not in {base.__name__ for base in type(model).__mro__}:
        raise UserError(f"{path} holds a {held}, not a {own}: give the recipe of its run, or --model {held}")
    there, here = checkpoint.get("hyper_parameters") or {}, model.hparams
    problem = _misfit(checkpoint["state_dict"], model)
    other_data = any(_plain(there.get(name)) != _plain(here.get(name)) for name in ("input_shape", "num_classes"))
    if problem and other_data and there:
        raise UserError(
            f"{path} was trained on {_data(there)}, and the data given has {_data(here)}: give the data of its run, "
            "or train a model anew"
        )
    if problem:
        raise UserError(f"{path} does not fit the {own}: {problem}; give the options of its run, as in its config.yaml")
    if there.get("tokenizer") != here.get("tokenizer"):
        raise UserError(f"{path} was trained on text of other characters or tokens: give the data of its run")
    _check_classes(path, TrainingData.parse(checkpoint.get("data") or {}), TrainingData.of(data))
    try:
        check_finite(checkpoint["state_dict"], model.state_dict())
        if resumes:
            check_training_state(checkpoint)
    except UserError as error:
        raise UserError(f"{path} cannot be loaded: {error}") from error


def _check_classes(path: str | Path, there: TrainingData, here: TrainingData) -> None:
    """Raises a `UserError` unless the classes have the same names in the same order."""
    if there.class_names is None or here.class_names is None or there.class_names == here.class_names:
        return
    index = next(i for i, pair in enumerate(zip_longest(there.class_names, here.class_names)) if len(set(pair)) > 1)
    first, second = (names[index] if index < len(names) else "none" for names in (there.class_names, here.class_names))
    raise UserError(
        f"{path} was trained on other classes than those of the data: class {index} is {first} in it and {second} in "
        "the data; give the data of its run"
    )


def _misfit(state: Mapping[str, Any], model: LightningModule) -> str:
    """First parameter whose name or shape differs, in words; empty if all fit."""
    own = model.state_dict()
    for name, value in own.items():
        if not isinstance(value, Tensor):
            continue
        if name not in state:
            if model.strict_loading:
                return f"it has no {name}"
        elif (shape := getattr(state[name], "shape", None)) != value.shape:
            return f"{name} is {_size(shape)} in it and {_size(value.shape)} here"
    unknown = next((name for name in state if name not in own), None)
    return f"it has {unknown}, and the model has not" if unknown is not None and model.strict_loading else ""


def _size(shape: Any) -> str:
    return "x".join(map(str, shape)) if shape else "a single number"


def _data(hyperparameters: Mapping[str, Any]) -> str:
    """Shape and number of classes, in words."""
    shape = hyperparameters.get("input_shape")
    return f"samples of the shape {_plain(shape)} in {hyperparameters.get('num_classes')} classes"


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
