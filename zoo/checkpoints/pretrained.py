"""A trained model as a folder of plain files: what it is in `config.json`, its tensors in `model.safetensors`.

`config.json` has the entries of a checkpoint that describe the model, see `zoo.checkpoints.format`, and its
`hyper_parameters`. There is no state of a training in the folder, and nothing in it is run. Tensors that share memory,
such as tied weights, are stored once; the other names stand in the header of `model.safetensors`, under `shared`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import UserError, one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARED = "shared"
LARGEST_CONFIG = 2**26


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder with the files of a saved model."""
    return (Path(path) / CONFIG).is_file() and (Path(path) / WEIGHTS).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """Reads `config.json`.

    Raises:
        UserError: it is no JSON, or does not describe a model of the zoo.
    """
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
            raise OSError(f"it is not a file of at most {LARGEST_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(str(error))}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_class"), str):
        raise UserError(f"{path} does not describe a model of lightning-zoo: it has no model_class")
    if not isinstance(config.get("hyper_parameters"), dict):
        raise UserError(f"{path} is damaged: it has no hyper_parameters")
    return config


def read_pretrained(folder: str | Path) -> dict[str, Any]:
    """Reads a folder as `zoo.checkpoints.reading.read_checkpoint` reads a checkpoint; tensors are memory-mapped.

    Raises:
        UserError: a file is missing or damaged.
    """
    from safetensors import safe_open

    config, path = read_config(Path(folder) / CONFIG), Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shared = json.loads((file.metadata() or {}).get(SHARED, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            state |= {name: state[kept] for name, kept in shared.items()}
    except Exception as error:  # arbitrary bytes raise arbitrary exceptions
        raise UserError(f"{path} is damaged: {one_line(str(error))[:200]}") from error
    return {**config, "state_dict": state}


def write_pretrained(folder: Path, description: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes `config.json` and `model.safetensors`.

    Args:
        folder: folder that exists.
        description: entries of `config.json`, plain values.
        state: state dict of the model.

    Raises:
        UserError: a hyperparameter is not a plain value, or an entry of the state is not a tensor of this process.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for name, value in description["hyper_parameters"].items():
        _check_plain(name, value)
    tensors, shared = _separate(state)
    (folder / CONFIG).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", SHARED: json.dumps(shared)})
    except SafetensorError as error:
        raise OSError(one_line(str(error))) from error
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read it


def _check_plain(name: str, value: Any) -> None:
    """Raises a `UserError` for a hyperparameter that JSON does not hold."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for one in value.values():
            _check_plain(name, one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _check_plain(name, one)
    elif not isinstance(value, (bool, int, str, type(None))) and not (
        isinstance(value, float) and math.isfinite(value)
    ):
        raise UserError(
            f"the hyperparameter {name} holds {value!r}, which is no plain value: name it in the argument ignore of "
            "save_hyperparameters"
        )


def _separate(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, and the names of those that are left out, with the name that is kept."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    kept: dict[Any, str] = {}
    storages: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name} in the model's state is a {type(value).__name__}, not a tensor: use register_buffer"
            )
        if hasattr(value, "full_tensor") or value.is_meta:
            raise UserError(f"{name} is not on this process alone: load the model from its checkpoint, then save it")
        tensor = value.detach()
        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in kept:
            shared[name] = kept[view]
            continue
        storage = tensor.untyped_storage().data_ptr()
        # Two parts of one storage are stored apart; safetensors refuses them otherwise.
        tensors[name] = (tensor.clone() if storage in storages else tensor).cpu().contiguous()
        kept[view] = name
        storages.add(storage)
    return tensors, shared
