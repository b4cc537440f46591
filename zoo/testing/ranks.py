"""The same function on several processes that train together, over gloo on the CPU."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing import start_processes
from torch.multiprocessing.spawn import ProcessException

PATIENCE = timedelta(seconds=60)  # that a process waits for the others


class RankError(RuntimeError):
    """An error in one of several processes: its rank, type and message."""


def on_ranks(task: Callable[[], Any], processes: int) -> list[Any]:
    """Calls a function on several processes of this machine, which find one another as those of torchrun do.

    Args:
        task: function; where it builds a Trainer, this takes `rank_options`. If there is an accelerator, or on another
            system than Linux, it must be picklable, since processes are started and not forked there.
        processes: number of processes.

    Returns:
        What the function returns on each rank: tensors and plain values.

    Raises:
        RankError: the function fails on a rank; the others are ended.
    """
    # A fork has imported everything already, but must not follow the start of threads of an accelerator.
    method = "fork" if sys.platform == "linux" and not torch.accelerator.is_available() else "spawn"
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(_run_rank, (task, processes, free_port(), folder), nprocs=processes, start_method=method)
        except ProcessException as error:
            raise RankError(_cause(Path(folder)) or str(error)) from error
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def rank_options(processes: int) -> dict[str, Any]:
    """Options of a Trainer on several ranks."""
    strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
    return {"devices": processes, "strategy": strategy} if processes > 1 else {}


def _run_rank(rank: int, task: Callable[[], Any], processes: int, port: int, folder: str) -> None:
    os.environ |= torchrun_variables(rank, processes, port)
    rank_zero_only.rank = rank  # type: ignore[attr-defined] # Lightning set it when it was imported
    torch.set_num_threads(1)  # after a fork, several threads of OpenMP would wait for ever
    try:
        torch.save(task(), Path(folder) / f"{rank}.pt")
    except Exception as error:
        (Path(folder) / f"{rank}.error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _cause(folder: Path) -> str:
    """The error that a rank has left; one that is not the loss of the connection to another rank, if there is any."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.error"))}
    errors = [f"on rank {rank}, {text}" for rank, text in texts.items() if text]  # a rank may be ended while it writes
    return min(errors, key=lambda error: "gloo/transport" in error, default="")


def torchrun_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """Environment variables of a rank on one machine, as torchrun sets them."""
    size = str(processes)
    return {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "zoo.testing",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
    }  # fmt: skip


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
