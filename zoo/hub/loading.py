"""`zoo.load`: a trained model from its checkpoint or its run, ready to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.reading import load_model
from zoo.errors import UserError

#: Checkpoints of a run, in the order in which they are preferred.
PREFERRED = ("best.ckpt", "last.ckpt")


def load(source: str | Path, device: str | torch.device = "cpu", **handed: Any) -> Any:
    """Loads a trained model, in eval mode. Nothing in the file is run.

        model = zoo.load("runs/resnet/version_0")
        model.predict("cat.jpg").names

    Args:
        source: path to a checkpoint, or to the folder of a run, whose best checkpoint is taken, else the last.
        device: device of the model, such as "cuda".
        **handed: arguments of the model's class that the checkpoint does not hold, such as a network of your own or an
            `ensemble` of further checkpoints.

    Returns:
        A model of the zoo or of a plugin, of the class that the checkpoint names.

    Raises:
        UserError: there is no such file, it does not hold a model of the zoo, or there is no such device.
    """
    path, target = find_checkpoint(Path(source)), find_device(device)
    return load_model(str(path), **handed).to(target)


def find_device(name: str | torch.device) -> torch.device:
    """A device by its name; "auto" is cuda where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name} is not available here; use cpu") from error
    return device


def find_checkpoint(path: Path) -> Path:
    """A checkpoint itself, or the preferred one of a run's folder.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} is neither a checkpoint nor the folder of a run")
    found = [path / "checkpoints" / name for name in PREFERRED]
    existing = next((file for file in found if file.is_file()), None)
    if existing is None:
        runs = sorted(folder.name for folder in path.glob("version_*") if (folder / "checkpoints").is_dir())
        hint = f"; it has the runs {', '.join(runs)}: name one of them" if runs else ""
        raise UserError(f"{path} has no {' or '.join(f'checkpoints/{name}' for name in PREFERRED)}{hint}")
    return existing
