"""Where a run is kept: a folder that no other run shares, and Weights & Biases, which never asks and never fails."""

from __future__ import annotations

import netrc
import os
import shutil
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from zoo.errors import UserError
from zoo.loggers import RunCSVLogger, RunWandbLogger, wandb_id
from zoo.messages import one_line
from zoo.resume import Continued, RunLock, remove_partial

WANDB_URL = "https://api.wandb.ai"
CONNECT_SECONDS = 5.0  # for the first connection to the server
INIT_SECONDS = 30.0  # for the start of a run there


@dataclass
class RunOptions:
    """Where runs are kept: `<root>/<name>/version_<k>/`.

    Args:
        root: folder of all runs.
        name: of this kind of run; the first recipe's name where it is not given.
    """

    root: str = "runs"
    name: str | None = None


@dataclass
class WandbOptions:
    """Weights & Biases.

    Args:
        mode: "auto" is what WANDB_MODE says, else online where there is an API key, else offline.
        project: that the run belongs to.
        log_model: upload checkpoints as artifacts: the best and the last, or "all".
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "lightning-zoo"
    log_model: bool | Literal["all"] = False


class RunFolders:
    """Makes the folders of runs, and takes back those of runs that did not start."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def new(self, root: str | Path, name: str) -> Path:
        """Makes `<root>/<name>/version_<k>` with the first free k; two runs that start at once get two folders.

        Raises:
            UserError: it cannot be made there.
        """
        parent = Path(root) / name
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 0
            while True:
                folder = parent / f"version_{number}"
                try:
                    folder.mkdir()
                except FileExistsError:
                    number += 1
                    continue
                self._made += [folder, *missing]
                return folder
        except OSError as error:
            for made in missing:  # those that could be made
                with suppress(OSError):
                    made.rmdir()
            raise UserError(
                f"the run's folder cannot be made in {parent}: {error.strerror}; choose another --run.root"
            ) from error

    def discard(self, begun: bool = True) -> None:
        """Removes the folders that `new` made, for a run that did not start.

        Args:
            begun: keep those in which training has left numbers; a folder with a checkpoint is always kept.
        """
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=1)
        for folder in self._made:
            started = (folder / "checkpoints").exists() or (begun and (folder / "metrics.csv").exists())
            if folder.name.startswith("version_") and not started:
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # there are other runs in it
                folder.rmdir()
        self._made = []


def has_wandb_credentials() -> bool:
    """Whether an API key or identity token is at hand, without asking anybody and without the network."""
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
    """The mode that a run is started in: as the options or WANDB_MODE say, else by whether there are credentials."""
    if options.mode != "auto":
        return options.mode
    if told := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(told, told)
    return "online" if has_wandb_credentials() else "offline"


def run_loggers(
    run: RunOptions, wandb: WandbOptions, recipe: str, folders: RunFolders, continued: Continued | None = None
) -> list[Logger]:
    """The loggers of a run: metrics.csv in a folder of its own, and Weights & Biases in the same folder.

    Args:
        run: where.
        wandb: how.
        recipe: name of the run where it has none.
        folders: makes the folder.
        continued: the run to go on with, in its folder, for one that is not new.
    """
    name = run.name or recipe
    # Only the first rank writes; the others learn its folder from Lightning, by a broadcast.
    first = getattr(rank_zero_only, "rank", 0) == 0
    if continued is not None:
        folder, logged = continued.folder, continued.logged
        if first:
            RunLock.take(folder)
            remove_partial(folder)
    else:
        folder, logged = folders.new(run.root, name) if first else Path(run.root) / name / "version_of_rank_0", {}
        if first:
            RunLock.take(folder)
    loggers: list[Logger] = [RunCSVLogger(run.root, name, folder.name, logged.get(RunCSVLogger.__name__, 0))]
    mode = wandb_mode(wandb)
    if mode == "online" and first:
        logger, problem = _online_logger(folder, wandb, name, continued)
        if problem:
            mode, logger = "offline", _wandb_logger(folder, "offline", wandb, name, continued)
            rank_zero_warn(
                f"Weights & Biases cannot be used ({problem}), so the run stays on disk; to upload it later: "
                f"wandb sync {folder}/wandb/offline-run-*"
            )
        loggers.append(logger)
        return loggers
    if mode != "disabled":
        loggers.append(_wandb_logger(folder, mode, wandb, name, continued))
    if mode == "offline" and wandb.mode == "auto" and "WANDB_MODE" not in os.environ:
        rank_zero_info(
            f"Weights & Biases has no API key here, so the run stays on disk; to upload it later: "
            f"wandb sync {folder}/wandb/offline-run-*"
        )
    return loggers


def _online_logger(
    folder: Path, options: WandbOptions, name: str, continued: Continued | None
) -> tuple[RunWandbLogger, str]:
    """A logger whose run has been started, or what prevents it, in a few words."""
    logger = _wandb_logger(folder, "online", options, name, continued)
    if problem := _connection_problem():
        return logger, problem
    from wandb.errors import Error

    try:
        logger.experiment  # noqa: B018 - starts the run
    except (Error, ValueError) as error:  # a wrong key, no answer, a project that may not be written to
        return logger, one_line(str(error))[:200]
    return logger, ""


def _connection_problem() -> str:
    """Why W&B's server cannot be reached; nothing if it can, or if a proxy stands between."""
    url = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_URL))
    if getproxies() or not url.hostname:
        return ""
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"no connection to {url.hostname}: {error.strerror or error}"
    return ""


def _wandb_logger(
    folder: Path, mode: str, options: WandbOptions, name: str, continued: Continued | None
) -> RunWandbLogger:
    import wandb

    # Whoever waits for a server that does not answer waits for training to begin.
    settings: dict[str, Any] = {"silent": True} if mode == "offline" else {"init_timeout": INIT_SECONDS}
    logger = RunWandbLogger(
        folder,
        rows=continued.logged.get(RunWandbLogger.__name__, 0) if continued else 0,
        id=wandb_id(folder) if continued else None,
        name=f"{name}-{folder.name}",
        project=options.project,
        log_model=options.log_model,
        mode=mode,
        settings=wandb.Settings(**settings),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning always passes it on, and wandb warns that it is gone
    return logger
