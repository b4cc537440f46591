"""Trained models that ship with the package: each a folder `zoo/weights/NAME` as `save_pretrained` writes it.

`zoo/weights/results.csv` holds what was measured of them, and the hashes of their weights. Nothing here imports torch.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from zoo.errors import UserError, did_you_mean
from zoo.registry import trained_folders


def list_models(pattern: str = "*") -> list[str]:
    """Names of the trained models of the zoo, which `zoo.load` loads.

        zoo.list_models("*digits*")

    Args:
        pattern: pattern of names, with * and ?.
    """
    return [name for name in trained_folders() if fnmatchcase(name, pattern)]


def find_trained(name: str, class_option: str | None = None) -> Path:
    """Folder of a trained model.

    Args:
        name: name of the model.
        class_option: option by which a command takes the name of a class, for the message.

    Raises:
        UserError: there is no model of this name.
    """
    folders = trained_folders()
    if name in folders:
        return folders[name]
    hint = did_you_mean(name, folders)
    of_class = f"; the class of a checkpoint's model is {class_option}" if class_option and name.isidentifier() else ""
    raise UserError(f"{name} is not a trained model of the zoo{hint}{of_class}")
