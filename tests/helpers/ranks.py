"""Ranks of one run as forks of this process, which has imported everything: several imports take longer than a test."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from zoo.distributed.launching import end_communication
from zoo.testing.ranks import free_port, torchrun_variables


def run_ranks(task: Callable[[int], object], processes: int, logs: list[Path] | None = None) -> int:
    """Runs a task in several processes, which find one another by the environment variables of torchrun.

    Fork before anything is computed with several threads, or on a GPU.

    Args:
        task: function of the rank.
        processes: number of ranks. A single one has no variables.
        logs: files for the output of each rank.

    Returns:
        Exit code of the first rank that fails, upon which the others are killed; 0 if all succeed.
    """
    port = free_port()
    running = set()
    for rank in range(processes):
        if (child := os.fork()) == 0:
            code = 70
            try:
                if logs:
                    _redirect(logs[rank])
                if processes > 1:
                    os.environ |= torchrun_variables(rank, processes, port)
                    rank_zero_only.rank = rank  # Lightning set it when it was imported
                task(rank)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        running.add(child)
    failed = 0
    while running:
        child, status = os.wait()
        running.discard(child)
        if status and not failed:
            failed = abs(os.waitstatus_to_exitcode(status))
            for other in running:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return failed


@contextmanager
def only_rank() -> Iterator[None]:
    """Makes this process the only rank of a run as torchrun starts it, whose strategy makes a process group."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in torchrun_variables(0, 1, free_port()).items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            end_communication()


def _redirect(path: Path) -> None:
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
