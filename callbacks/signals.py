"""Ending a run on a signal as it should end: after the batch that it is in, with a checkpoint and a word on it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo.callbacks.checkpoints import BestAndLast

BATCHES = 10  # from one agreement of several processes to the next


class Stopped(SystemExit):
    """Ends a run that was stopped by a signal, with the exit code that a shell expects of it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopOnSignal(Callback):
    """Stops training on SIGTERM and Ctrl-C: it saves, says where, and exits with 128 + the signal's number.

    The run stops after the batch that it is in, with the validation that follows, so that its checkpoint continues it
    exactly. A second signal ends it at once. Where SLURM is to requeue a job (`#SBATCH --signal=SIGUSR1@90` and
    `--requeue`), SIGUSR1 does the same and requeues the job.

    Lightning's own handling is not used: on Ctrl-C it breaks off in the middle of a batch and exits with 1, SIGTERM
    saves nothing, and SLURM's signal saves in the middle of a batch.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = None
        if threading.current_thread() is not threading.main_thread():
            return  # where Python takes no handlers
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if _requeues() else [])):
            self._before[number] = signal.signal(number, self._note)
        # The one place where a batch is over, with its validation and its logs, and the next one has not begun: there
        # is no hook for it.
        self._loop: Any = trainer.fit_loop.epoch_loop
        self._loop.on_advance_end = self._after(self._loop.on_advance_end, trainer)  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)  # for those who ask twice
        rank_zero_info(f"{signal.Signals(number).name}: the run stops after this batch; a second one ends it at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            del self._loop.on_advance_end  # the loop's own is there again
        self._before = {}

    def _after(self, advance: Callable[..., None], trainer: Trainer) -> Callable[..., None]:
        def on_advance_end(*args: Any) -> None:
            advance(*args)
            if number := self._agreed(trainer):
                self._stop(trainer, number)

        return on_advance_end

    def _agreed(self, trainer: Trainer) -> int:
        """The number of the signal that any process has received, 0 for none; the same in all processes."""
        number = self._received or 0
        if trainer.world_size == 1:
            return number
        if trainer.fit_loop.total_batch_idx % BATCHES:
            return 0
        numbers = torch.tensor(number, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)

    def _stop(self, trainer: Trainer, number: int) -> None:
        path = self._save(trainer)
        name = signal.Signals(number).name
        where = f"; {path} goes on from here, by the same command with --ckpt_path last" if path else ""
        rank_zero_info(f"Stopped by {name} after {trainer.global_step} steps{where}")
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            _requeue()
        raise Stopped(number)

    def _save(self, trainer: Trainer) -> str | None:
        """Writes the last checkpoint into the folder of checkpoints, if there is one."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestAndLast):
                callback.write_last(trainer)
                return callback.last_model_path or None
        for callback in trainer.checkpoint_callbacks:
            if folder := getattr(callback, "dirpath", None):
                path = str(Path(folder) / "last.ckpt")
                trainer.save_checkpoint(path)
                return path
        return None


def _requeues() -> bool:
    """Whether this is a job of SLURM that can be put back into its queue."""
    return SLURMEnvironment.detect() and "SLURM_JOB_ID" in os.environ


def _requeue() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True)
        rank_zero_info(f"SLURM has requeued the job {job}")
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"SLURM has not requeued the job {job}: {error}")
