"""The Weights & Biases run of a checkpoint, into which `test` logs its metrics, tables and images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from zoo._lightning import drop_anonymous
from zoo.errors import UserError
from zoo.tracking.run_folders import RunLock
from zoo.tracking.wandb import INIT_TIMEOUT, WandbOptions, start_or_fall_back, wandb_id, wandb_mode
from zoo.tracking.wandb_process import TolerantWandbLogger


def loggers_of_test(ckpt_path: str | None, options: WandbOptions) -> list[Logger]:
    """The logger of the Weights & Biases run that the checkpoint's run has, which is resumed; empty if there is none.

    It says in one line why there is none, unless Weights & Biases is disabled.

    Args:
        ckpt_path: path to the checkpoint, in the folder `checkpoints` of its run; None if there is no checkpoint.
        options: mode and project.
    """
    mode = wandb_mode(options)
    if mode == "disabled" or ckpt_path is None:
        return []
    folder = Path(ckpt_path).parent.parent
    run_id = wandb_id(folder) if Path(ckpt_path).parent.name == "checkpoints" else None
    if run_id is None:
        rank_zero_info(f"Weights & Biases is left out: there is no run of it beside {ckpt_path}")
        return []
    if getattr(rank_zero_only, "rank", 0) == 0:
        try:
            RunLock.take(folder)
        except UserError:
            rank_zero_info(f"Weights & Biases is left out: the run in {folder} is still in progress")
            return []
        logger = start_or_fall_back(partial(_new_logger, folder, run_id, options), mode, "the test is kept on disk")
        return [logger] if logger else []
    return [_new_logger(folder, run_id, options, mode)]


def _new_logger(folder: Path, run_id: str, options: WandbOptions, mode: str) -> WandbLogger:
    import wandb

    settings: dict[str, Any] = {"silent": True} if mode == "offline" else {"init_timeout": INIT_TIMEOUT}
    settings_of_run = wandb.Settings(**settings)
    # Not a RunWandbLogger: the rows of a test do not count as rows that a resumed run has logged already.
    logger = TolerantWandbLogger(
        save_dir=str(folder), id=run_id, project=options.project, mode=mode, settings=settings_of_run
    )
    drop_anonymous(logger)
    return logger
