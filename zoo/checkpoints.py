"""Reading checkpoints, whatever model of the zoo they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo.catalog import find_class
from zoo.errors import UserError


def load_model(ckpt_path: str, model: str | None = None) -> Any:
    """Loads a model of the zoo from its checkpoint, in evaluation mode, on the CPU.

    Nothing in the file is run: it is read with `weights_only`, and the class that it names must be in the zoo or in
    one of its plugins.

    Args:
        ckpt_path: the file.
        model: the class; what the checkpoint says where it is not given.

    Raises:
        UserError: there is no such file, or it holds no model of the zoo.
    """
    if not Path(ckpt_path).is_file():
        raise UserError(f"--ckpt_path {ckpt_path} is not a file")
    try:
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes can be anything, and so can what the unpickler stumbles over
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(f"{ckpt_path} is not a checkpoint that can be read safely ({reason})") from error
    name = model or (checkpoint.get("model_class") if isinstance(checkpoint, dict) else None)
    if name is None:
        raise UserError(f"{ckpt_path} does not say which model it holds; name its class with --model")
    model_class: Any = find_class(name)
    try:
        return model_class.load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True).eval()
    except (RuntimeError, TypeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{ckpt_path} does not hold a {model_class.__name__} ({reason})") from error
