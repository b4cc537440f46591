"""Checkpoints that runs have uploaded to Weights & Biases, `wandb:entity/project/artifact:alias`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from zoo.errors import UserError, one_line
from zoo.sharing.connection import connection_problem
from zoo.tracking.wandb import WANDB_URL, has_wandb_credentials

PREFIX = "wandb:"
FORM = "wandb:entity/project/artifact:alias"
TIMEOUT = 20  # seconds, for each request


def download_artifact(source: str) -> Path:
    """Downloads an artifact into the cache of Weights & Biases; one version is downloaded once.

    Args:
        source: `wandb:entity/project/artifact:alias`; the alias is "latest" by default, and "best" is the best
            checkpoint of a run with `--wandb.log_model true`.

    Returns:
        Folder with the files of the artifact.

    Raises:
        UserError: there is no key, no connection or no such artifact.
    """
    path = source.removeprefix(PREFIX)
    if not re.fullmatch(r"[^/:\s]+/[^/:\s]+/[^/:\s]+(:[^/:\s]+)?", path):
        raise UserError(f"{source} is no artifact; write {FORM}")
    server = os.environ.get("WANDB_BASE_URL", WANDB_URL)
    if not has_wandb_credentials():  # wandb.Api would ask for a key
        raise UserError(f"{source} needs an API key of Weights & Biases: wandb login, or set WANDB_API_KEY")
    if problem := connection_problem(server):
        raise UserError(f"{source} cannot be downloaded: {problem}")
    import wandb

    try:
        artifact = wandb.Api(timeout=TIMEOUT).artifact(path if ":" in path else f"{path}:latest")
        folder = _cache() / artifact.entity / artifact.project / artifact.name.replace(":", "-")
        artifact.download(root=str(folder))
    except Exception as error:  # of wandb, of its service, or of the connection
        raise UserError(f"{source} cannot be downloaded: {one_line(str(error))[:200]}") from error
    return folder


def _cache() -> Path:
    from wandb.env import get_cache_dir

    folder: Any = get_cache_dir()
    return Path(folder) / "lightning-zoo"
