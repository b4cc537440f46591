"""Where a run is kept: a folder that no other run shares, and Weights & Biases, which never asks and never fails."""

from __future__ import annotations

import netrc
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from zoo.errors import UserError


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
            raise UserError(
                f"the run's folder cannot be made in {parent}: {error.strerror}; choose another --run.root"
            ) from error

    def discard(self) -> None:
        """Removes the folders that `new` made in which no training has left a trace, for a run that did not start."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=1)
        for folder in self._made:
            started = (folder / "metrics.csv").exists() or (folder / "checkpoints").exists()
            if folder.name.startswith("version_") and not started:
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # there are other runs in it
                folder.rmdir()
        self._made = []


def has_wandb_credentials() -> bool:
    """Whether an API key or identity token is at hand, without asking anybody and without the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
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


def run_loggers(run: RunOptions, wandb: WandbOptions, recipe: str, folders: RunFolders) -> list[Logger]:
    """The loggers of a new run: metrics.csv in a folder of its own, and Weights & Biases in the same folder."""
    name = run.name or recipe
    # Only the first rank writes; the others learn its folder from Lightning, by a broadcast.
    first = getattr(rank_zero_only, "rank", 0) == 0
    folder = folders.new(run.root, name) if first else Path(run.root) / name / "version_of_rank_0"
    loggers: list[Logger] = [CSVLogger(run.root, name=name, version=folder.name)]
    mode = wandb_mode(wandb)
    if mode != "disabled":
        loggers.append(_wandb_logger(folder, f"{name}-{folder.name}", mode, wandb))
    if mode == "offline" and wandb.mode == "auto" and "WANDB_MODE" not in os.environ:
        rank_zero_info(
            f"Weights & Biases has no API key here, so the run stays on disk; to upload it later: "
            f"wandb sync {folder}/wandb/offline-run-*"
        )
    return loggers


def _wandb_logger(folder: Path, name: str, mode: str, options: WandbOptions) -> Logger:
    import wandb

    settings: dict[str, Any] = {"silent": True} if mode == "offline" else {}
    logger = WandbLogger(
        name=name,
        save_dir=str(folder),
        project=options.project,
        log_model=options.log_model,
        mode=mode,
        settings=wandb.Settings(**settings),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning always passes it on, and wandb warns that it is gone
    return logger
