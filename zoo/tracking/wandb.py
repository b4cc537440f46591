"""Weights & Biases: online with a key, offline without; it never prompts and never makes a run fail."""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo._lightning import drop_anonymous
from zoo.errors import as_word
from zoo.sharing.connection import connection_problem
from zoo.tracking.loggers import RunWandbLogger
from zoo.tracking.run import Run
from zoo.tracking.wandb_process import FINISH_LIMIT, L, start_run

WANDB_URL = "https://api.wandb.ai"
INIT_TIMEOUT = 10.0  # seconds that the server has to answer at the start of a run
#: Values of WANDB_MODE, and the modes that they are.
MODES = {name: name for name in ("online", "offline", "disabled", "shared")} | {"dryrun": "offline", "run": "online"}


@dataclass
class WandbOptions:
    """Weights & Biases.

    Args:
        mode: mode of the run; "auto" follows WANDB_MODE, else it is online with an API key and offline without.
        project: project of the run.
        log_model: upload checkpoints as artifacts: true for best and last, or "all".
        finish_limit: seconds that the upload may take when a run has ended; `wandb sync` uploads what is missing then.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lightning-zoo"
    log_model: bool | Literal["all"] = False
    finish_limit: float = FINISH_LIMIT


class RunWandb(DummyLogger):
    """Stands in `trainer.logger` for the run's own Weights & Biases, which the options `--wandb.*` describe."""


def has_wandb_credentials() -> bool:
    """Whether an API key or identity token is configured; looks at the environment and .netrc only."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    with suppress(ValueError, RuntimeError):  # an address that is none, no home folder
        host = urlsplit(wandb_url()).hostname or ""
        named = os.environ.get("NETRC")
        for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
            with suppress(OSError, ValueError, netrc.NetrcParseError):
                found = netrc.netrc(path).authenticators(host)
                if found and found[2]:  # login, account, password
                    return True
    return False


def wandb_url() -> str:
    """Address of the server."""
    return os.environ.get("WANDB_BASE_URL") or WANDB_URL


def wandb_mode(options: WandbOptions) -> str:
    """Mode of a new run: that of the options, else WANDB_MODE, else by whether there are credentials.

    A WANDB_MODE that is no mode is removed from the environment, since wandb ends with an error for it.
    """
    variable = os.environ.get("WANDB_MODE")
    if variable is not None and variable not in MODES:
        del os.environ["WANDB_MODE"]
        if variable:
            rank_zero_warn(f"WANDB_MODE is {variable!r}, which is no mode; it can be {', '.join(MODES)}")
        variable = None
    if options.mode != "auto":
        return options.mode
    if variable:
        return MODES[variable]
    return "online" if has_wandb_credentials() else "offline"


def wandb_logger(
    run: Run, options: WandbOptions, given: dict[str, Any], program: str = "wandb"
) -> RunWandbLogger | None:
    """The Weights & Biases logger of a run, or None if it is disabled or cannot start; offline if it cannot be online.

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
    if mode == "offline" and options.mode == "auto" and "WANDB_MODE" not in os.environ:
        rank_zero_info(f"Weights & Biases has no API key, so the run is kept on disk; {upload}")
    make = partial(_new_logger, run, options, given)
    if not run.first:
        return make(mode)
    return start_or_fall_back(make, mode, f"the run is kept on disk; {upload}")


def start_or_fall_back(make: Callable[[str], L], mode: str, way_out: str) -> L | None:
    """Starts the run of a logger: offline if it cannot be online, and not at all if that fails too, with one warning.

    Args:
        make: builds the logger for a mode.
        mode: mode that is wanted.
        way_out: what the warning says about a run that is offline.

    Returns:
        The logger, or None.
    """
    problem = connection_problem(wandb_url()) if mode == "online" else ""
    logger = None
    if not problem:
        logger, problem = start_run(make, mode)
    if logger is None and mode == "online":
        refused, (logger, problem) = problem, start_run(make, "offline")
        if logger is not None:
            rank_zero_warn(f"Weights & Biases is not available ({refused}), so {way_out}")
    if logger is None:
        rank_zero_warn(f"Weights & Biases is left out: {problem}")
    return logger


def _new_logger(run: Run, options: WandbOptions, given: dict[str, Any], mode: str) -> RunWandbLogger:
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
