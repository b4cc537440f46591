"""Processes that do not answer: which they are, when a collective has exceeded its limit of time.

A process that is stopped (SIGSTOP), swapped out or stuck lets all others wait in the next collective, for the `timeout`
of the strategy. Those that gave up then sign in at the store where all processes met; those that are missing there are
named. Under NCCL PyTorch's own watchdog ends the processes instead, and no error reaches this code.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed

from zoo._lightning import default_store
from zoo.errors import UnresponsiveError

ROLL_CALL = 5.0  # seconds in which the processes that still run sign in
OPTION = "--trainer.strategy.timeout"


@contextmanager
def naming_unresponsive() -> Iterator[None]:
    """Turns the error of a collective that took too long into one that names the processes that do not answer.

    Raises:
        UnresponsiveError: on the first of the processes that answer; the others raise `SystemExit`.
    """
    try:
        yield
    except Exception as error:
        if not is_lost_connection(error):
            raise
        too_long = re.search("timed ?out|timeout", str(error), re.IGNORECASE)
        if not torch.distributed.is_initialized():
            if not too_long:
                raise
            raise UnresponsiveError(f"the processes have not all started within the time of {OPTION}") from error
        answering = _roll_call(wait=bool(too_long))
        missing = [rank for rank in range(torch.distributed.get_world_size()) if rank not in answering]
        if not too_long or not missing:
            raise
        if torch.distributed.get_rank() != min(answering):
            raise SystemExit(1) from None
        names = f"rank {missing[0]} does" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))} do"
        raise UnresponsiveError(
            f"{names} not answer, and the others have waited for the time of {OPTION}; they end"
        ) from error


def is_lost_connection(error: Exception) -> bool:
    """Whether an error is no more than the lost connection to another process, or its missing answer."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _roll_call(wait: bool) -> list[int]:
    """Signs in at the store, and returns the ranks that do so too; without rank 0, which keeps it, all others.

    Args:
        wait: whether to wait for the others.
    """
    store, rank = default_store(), torch.distributed.get_rank()
    others = range(torch.distributed.get_world_size())
    found: list[int] = []

    def sign_in() -> None:
        store.set(f"zoo/answers/{rank}", "1")
        if wait:
            time.sleep(ROLL_CALL)
            found.extend(one for one in others if store.check([f"zoo/answers/{one}"]))

    # In a thread: a store whose process is stopped never answers.
    thread = threading.Thread(target=sign_in, daemon=True)
    thread.start()
    thread.join(2 * ROLL_CALL if wait else 1.0)
    return found or [one for one in others if one]
