"""`zoo.load`: a trained model from wherever it is, ready to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.pretrained import CONFIG, is_pretrained
from zoo.checkpoints.reading import load_model
from zoo.errors import UserError, nearest
from zoo.hub.artifacts import PREFIX, download_artifact
from zoo.hub.trained import find_trained, list_models
from zoo.sharing.repositories import download, is_repository

#: Checkpoints of a run, in the order in which they are preferred.
PREFERRED = ("best.ckpt", "last.ckpt")


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    token: str | None = None,
    **handed: Any,
) -> Any:
    """Loads a trained model, in eval mode. Nothing in its files is run.

        model = zoo.load("resnet-fashion-mnist")
        model.predict("shirt.jpg").names

    | source | |
    | --- | --- |
    | `gan-digits` | a trained model of the zoo, see `zoo.list_models`, if there is nothing of that name on disk |
    | `runs/gan/version_0/checkpoints/best.ckpt` | a checkpoint |
    | `runs/gan/version_0` | the folder of a run: its best checkpoint, else its last |
    | `my_model` | the folder of a saved model, see `save_pretrained` |
    | `owner/name` | a repository on the Hugging Face Hub, if there is nothing of that name on disk |
    | `wandb:entity/project/artifact:alias` | a checkpoint that was uploaded to Weights & Biases |

    Args:
        source: where the model is.
        device: device of the model, such as "cuda"; "auto" is cuda where there is one, then mps, then the CPU.
        revision: branch, tag or commit of a repository on the Hugging Face Hub.
        token: access token for a private repository; by default that of `hf auth login` or HF_TOKEN.
        **handed: arguments of the model's class that are not stored, such as a network of your own or an `ensemble` of
            further checkpoints.

    Returns:
        A model of the zoo or of a plugin, of the class that the checkpoint names.

    Raises:
        UserError: there is no such model, its files do not hold a model of the zoo, or there is no such device.
    """
    path, target = _find(source, revision, token), find_device(device)
    return load_model(path, **handed).to(target)


def find_device(name: str | torch.device, option: str = "device") -> torch.device:
    """A device by its name; "auto" is cuda where there is one, then mps, which are Apple's GPUs, then the CPU.

    Args:
        name: name of the device, such as "cuda:1".
        option: what the message of an error calls the name.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = _devices()[0]
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{option} {name} is not available here; choose one of auto, {', '.join(_devices())}"
        ) from error
    return device


def _devices() -> list[str]:
    """Names of the devices of this machine, the preferred one first."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = ["cuda", *(f"cuda:{index}" for index in range(1, count))] if count else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _find(source: str | Path, revision: str | None, token: str | None) -> Path:
    """The checkpoint or the folder of a saved model, downloaded if it is not here."""
    if isinstance(source, str) and source.startswith(PREFIX):
        return find_checkpoint(download_artifact(source))
    if Path(source).exists():
        return find_checkpoint(source)
    if str(source) in (names := list_models()):
        return find_trained(str(source))
    if not is_repository(source):
        hint = nearest(str(source), names)
        raise UserError(
            f"{source} is neither a checkpoint, the folder of a run or of a saved model, a trained model of the zoo, "
            f"nor a repository owner/name{hint}"
        )
    try:
        return download(str(source), revision, token)
    except UserError as error:
        raise UserError(f"{source} is no file or folder here, and as a repository: {error}") from error


def find_checkpoint(source: str | Path) -> Path:
    """A checkpoint or the folder of a saved model as it is; in any other folder the preferred checkpoint of a run.

    Raises:
        UserError: the folder has none.
    """
    folder = Path(source)
    if not folder.is_dir() or is_pretrained(folder):
        return folder
    found = [folder / "checkpoints" / name for name in PREFERRED] + sorted(folder.glob("*.ckpt"))
    existing = next((file for file in found if file.is_file()), None)
    if existing is None:
        runs = sorted(run.name for run in folder.glob("version_*") if (run / "checkpoints").is_dir())
        hint = f"; it has the runs {', '.join(runs)}: name one of them" if runs else ""
        raise UserError(f"{folder} has no {', '.join(f'checkpoints/{name}' for name in PREFERRED)} or {CONFIG}{hint}")
    return existing
