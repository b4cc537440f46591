"""Weights & Biases within limits of time: the start and the end of its run, and its helper process, wandb-core.

wandb waits for the helper, and the helper for the server, for 20 minutes and more. Whatever exceeds its limit is ended
here by ending the helper; what the run has logged stays on disk, for `wandb sync`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from zoo._lightning import wandb_core
from zoo.errors import as_word, one_line

START_LIMIT = 12.0  # seconds, for the start of a run that is online
OFFLINE_LIMIT = 60.0  # seconds, for the start of one that is not, for which only this machine can be slow
FINISH_LIMIT = 30.0  # seconds, for what is not uploaded yet when a run ends
STOPPED_LIMIT = 5.0  # seconds, likewise for a run that a signal ends
HELPER_LIMIT = 5.0  # seconds, for the helper process that has nothing left to do

L = TypeVar("L", bound=WandbLogger)

# The reports on wandb's own errors would be sent when the process ends, and wait for the server once more.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


class TolerantWandbLogger(WandbLogger):
    """Lightning's WandbLogger, which warns where that one ends training: if the helper process has ended."""

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        with warn_on_failure():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with warn_on_failure():
            super().finalize(status)


@contextmanager
def warn_on_failure() -> Iterator[None]:
    """Turns errors of wandb into a warning."""
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"Weights & Biases has not logged everything: {_reason(error)}")


def start_run(make: Callable[[str], L], mode: str) -> tuple[L | None, str]:
    """Builds a logger and starts its run.

    Args:
        make: builds the logger for a mode.
        mode: mode.

    Returns:
        The logger and an empty string, or None and the reason why the run does not start, in a few words.
    """
    try:
        logger = make(mode)
        call_within(OFFLINE_LIMIT if mode == "offline" else START_LIMIT, lambda: logger.experiment)
    except (Exception, SystemExit) as error:  # wrong key, no answer, no permission, a setting that is not possible
        end_helper()
        return None, _reason(error)
    return logger, ""


def finish_run(exit_code: int = 0, limit: float = FINISH_LIMIT, program: str = "wandb") -> None:
    """Ends the run of Weights & Biases in this process, if there is one; a later run would be logged into it.

    Args:
        exit_code: exit code of the run.
        limit: seconds that the upload may take.
        program: how the program of Weights & Biases is started, for the command that uploads what is missing.
    """
    wandb = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    if wandb is None or run is None:
        return
    folder = Path(run.dir).parent  # its own folder `files` is given
    try:
        call_within(limit, lambda: wandb.finish(exit_code=exit_code))
    except (Exception, SystemExit) as error:
        end_helper()
        rank_zero_warn(
            f"Weights & Biases has not got everything ({_reason(error)}); to upload it: {program} sync "
            f"{as_word(folder)}"
        )


def end_helper() -> None:
    """Ends the helper process, which this process would wait for at its end."""
    if wandb := sys.modules.get("wandb"):
        with suppress(Exception, SystemExit):
            call_within(HELPER_LIMIT, wandb.teardown)
        with suppress(ImportError, AttributeError):
            from wandb.sdk.lib.module import unset_globals

            unset_globals()  # a run that could not be ended would be continued by the next one


def call_within(limit: float, call: Callable[[], object]) -> None:
    """Calls a function of wandb; after the limit the helper process is ended, without which the call soon fails.

    Args:
        limit: seconds.
        call: function.

    Raises:
        TimeoutError: it took longer.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    helper = wandb_core()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        logging.getLogger("wandb.sdk.lib").setLevel(logging.CRITICAL)  # it logs the lost connection, with a traceback
        if helper := wandb_core() or helper:
            helper.kill()
        thread.join(1.0)
        raise TimeoutError(f"no answer within {limit:g} s")
    if raised:
        raise raised[0]


def _reason(error: BaseException) -> str:
    """An error in one line, without the value that pydantic shows, which may be secret."""
    return re.sub(r"\s*\[type=.*", "", one_line(str(error)) or type(error).__name__)[:200]
