"""Weights & Biases: online with a key, offline without; it never prompts and never makes a run fail."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo._lightning import drop_anonymous
from zoo.checkpoints.resume import ResumePoint
from zoo.connection import connection_problem
from zoo.errors import one_line
from zoo.tracking.loggers import RunWandbLogger

WANDB_URL = "https://api.wandb.ai"
INIT_TIMEOUT = 30.0  # seconds, for the start of a run


@dataclass
class WandbOptions:
    """Weights & Biases.

    Args:
        mode: mode of the run; "auto" follows WANDB_MODE, else it is online with an API key and offline without.
        project: project of the run.
        log_model: upload checkpoints as artifacts: true for best and last, or "all".
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lightning-zoo"
    log_model: bool | Literal["all"] = False


def has_wandb_credentials() -> bool:
    """Whether an API key or identity token is configured; looks at the environment and .netrc only."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_URL)).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            found = netrc.netrc(path).authenticators(host)
            if found and found[2]:  # login, account, password
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_mode(options: WandbOptions) -> str:
    """Mode of a new run: that of the options, else WANDB_MODE, else by whether there are credentials."""
    if options.mode != "auto":
        return options.mode
    if variable := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(variable, variable)
    return "online" if has_wandb_credentials() else "offline"


def wandb_logger(
    folder: Path, options: WandbOptions, name: str, first: bool, resumed: ResumePoint | None
) -> RunWandbLogger | None:
    """The Weights & Biases logger of a run, or None if it is disabled. Falls back to offline, with one line on why.

    Args:
        folder: folder of the run.
        options: mode, project and artifacts.
        name: name of the run.
        first: whether this is rank 0, which alone contacts the server.
        resumed: run that is resumed, under its id.
    """
    mode = wandb_mode(options)
    if mode == "disabled":
        return None
    upload = f"to upload it later: wandb sync {folder}/wandb/offline-run-*"
    if mode == "online" and first:
        logger, problem = _online_logger(folder, options, name, resumed)
        if not problem:
            return logger
        rank_zero_warn(f"Weights & Biases is not available ({problem}), so the run is kept on disk; {upload}")
        return _new_logger(folder, "offline", options, name, resumed)
    if mode == "offline" and options.mode == "auto" and "WANDB_MODE" not in os.environ:
        rank_zero_info(f"Weights & Biases has no API key, so the run is kept on disk; {upload}")
    return _new_logger(folder, mode, options, name, resumed)


def _online_logger(
    folder: Path, options: WandbOptions, name: str, resumed: ResumePoint | None
) -> tuple[RunWandbLogger, str]:
    """A logger whose run has started, or the reason why it cannot, in a few words."""
    logger = _new_logger(folder, "online", options, name, resumed)
    if problem := connection_problem(os.environ.get("WANDB_BASE_URL", WANDB_URL)):
        return logger, problem
    from wandb.errors import Error

    try:
        logger.experiment  # noqa: B018 - starts the run
    except (Error, ValueError) as error:  # wrong key, no answer, no permission for the project
        return logger, one_line(str(error))[:200]
    return logger, ""


def _new_logger(
    folder: Path, mode: str, options: WandbOptions, name: str, resumed: ResumePoint | None
) -> RunWandbLogger:
    import wandb

    settings: dict[str, Any] = {"silent": True} if mode == "offline" else {"init_timeout": INIT_TIMEOUT}
    logger = RunWandbLogger(
        folder,
        rows=resumed.logged.get(RunWandbLogger.__name__, 0) if resumed else 0,
        id=wandb_id(folder) if resumed else None,
        name=f"{name}-{folder.name}",
        project=options.project,
        log_model=options.log_model,
        mode=mode,
        settings=wandb.Settings(**settings),
    )
    drop_anonymous(logger)
    return logger


def wandb_id(folder: Path) -> str | None:
    """Id of the Weights & Biases run in a run's folder: the last part of its folder's name."""
    folders = sorted((folder / "wandb").glob("*run-*-*"))
    return folders[-1].name.rsplit("-", 1)[-1] if folders else None
