"""Weights & Biases: online with a key, offline without; it never prompts and never makes a run fail."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo._lightning import drop_anonymous
from zoo.errors import as_word, one_line
from zoo.sharing.connection import connection_problem
from zoo.tracking.loggers import RunWandbLogger
from zoo.tracking.run import Run

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


class RunWandb(DummyLogger):
    """Stands in `trainer.logger` for the run's own Weights & Biases, which the options `--wandb.*` describe."""


def has_wandb_credentials() -> bool:
    """Whether an API key or identity token is configured; looks at the environment and .netrc only."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(wandb_url()).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            found = netrc.netrc(path).authenticators(host)
            if found and found[2]:  # login, account, password
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_url() -> str:
    """Address of the server."""
    return os.environ.get("WANDB_BASE_URL", WANDB_URL)


def wandb_mode(options: WandbOptions) -> str:
    """Mode of a new run: that of the options, else WANDB_MODE, else by whether there are credentials."""
    if options.mode != "auto":
        return options.mode
    if variable := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(variable, variable)
    return "online" if has_wandb_credentials() else "offline"


def wandb_logger(
    run: Run, options: WandbOptions, given: dict[str, Any], program: str = "wandb"
) -> RunWandbLogger | None:
    """The Weights & Biases logger of a run, or None if it is disabled. Falls back to offline, with one line on why.

    Args:
        run: the run; its rank 0 alone contacts the server.
        options: mode, project and artifacts.
        given: arguments of Lightning's WandbLogger that the user gives; they win over the options.
        program: how the program of Weights & Biases is started, for the command that uploads a run later.
    """
    given = dict(given)
    if given.pop("offline", False):
        given["mode"] = "offline"
    mode = given.pop("mode", None) or wandb_mode(options)
    if mode == "disabled":
        return None
    folder = Path(given.get("save_dir", run.folder))
    upload = f"to upload it later: {program} sync {as_word(folder)}/wandb/offline-run-*"
    if mode == "online" and run.first:
        logger = _new_logger(run, "online", options, given)
        problem = start_problem(logger)
        if not problem:
            return logger
        rank_zero_warn(f"Weights & Biases is not available ({problem}), so the run is kept on disk; {upload}")
        return _new_logger(run, "offline", options, given)
    if mode == "offline" and options.mode == "auto" and "WANDB_MODE" not in os.environ:
        rank_zero_info(f"Weights & Biases has no API key, so the run is kept on disk; {upload}")
    return _new_logger(run, mode, options, given)


def start_problem(logger: WandbLogger) -> str:
    """Starts the run of a logger that is online; returns the reason if that fails, in a few words."""
    if problem := connection_problem(wandb_url()):
        return problem
    from wandb.errors import Error

    try:
        logger.experiment  # noqa: B018 - starts the run
    except (Error, ValueError) as error:  # wrong key, no answer, no permission for the project
        return one_line(str(error))[:200]
    return ""


def _new_logger(run: Run, mode: str, options: WandbOptions, given: dict[str, Any]) -> RunWandbLogger:
    import wandb

    settings: dict[str, Any] = {"silent": True} if mode == "offline" else {"init_timeout": INIT_TIMEOUT}
    arguments = {
        "id": wandb_id(run.folder) if run.resumed else None,
        "name": f"{run.name}-{run.folder.name}",
        "project": options.project,
        "log_model": options.log_model,
        "settings": wandb.Settings(**settings),
    }
    logger = RunWandbLogger(run.folder, run.rows_logged(RunWandbLogger), **{**arguments, **given, "mode": mode})
    drop_anonymous(logger)
    return logger


def wandb_id(folder: Path) -> str | None:
    """Id of the Weights & Biases run in a run's folder: the last part of its folder's name."""
    folders = sorted((folder / "wandb").glob("*run-*-*"))
    return folders[-1].name.rsplit("-", 1)[-1] if folders else None
