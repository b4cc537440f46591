"""Graceful end of a run on SIGTERM, Ctrl-C and SLURM's signal: after the current batch, with a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo._lightning import after_each_batch
from zoo.callbacks.best_and_last import BestAndLastCheckpoint

BATCHES = 10  # batches between two collectives in which the processes share received signals


class Stopped(SystemExit):
    """Ends the process with the exit code of a process that was ended by a signal, 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopOnSignal(Callback):
    """Stops training on SIGTERM and Ctrl-C, saves a checkpoint, and exits with 128 + the signal's number.

    The run stops after the current batch and a validation that is due, so that the checkpoint resumes exactly. A second
    signal ends the process at once. If SLURM is to requeue the job (`#SBATCH --signal=SIGUSR1@90` and `--requeue`),
    SIGUSR1 does the same and requeues the job.

    Lightning's own handling is replaced: on Ctrl-C it stops in the middle of a batch and exits with 1, on SIGTERM it
    saves nothing, and on SLURM's signal it saves in the middle of a batch.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = None
        if threading.current_thread() is not threading.main_thread():
            return  # Python sets handlers in the main thread only
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if _requeues() else [])):
            self._before[number] = signal.signal(number, self._note)
        self._remove_hook = after_each_batch(trainer, lambda: self._stop_if_signalled(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process
        rank_zero_info(f"{signal.Signals(number).name}: stopping after this batch; a second signal ends the process")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            self._remove_hook()
        self._before = {}

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        if number := self._shared_signal(trainer):
            self._stop(trainer, number)

    def _shared_signal(self, trainer: Trainer) -> int:
        """Number of the signal that any process has received, 0 for none; the same in all processes."""
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
        where = f"; resume from {path} by the same command with --ckpt_path last" if path else ""
        rank_zero_info(f"Stopped by {name} after {trainer.global_step} steps{where}")
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            _requeue()
        raise Stopped(number)

    def _save(self, trainer: Trainer) -> str | None:
        """Writes last.ckpt into the folder of checkpoints, if there is one, and returns its path."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestAndLastCheckpoint):
                callback.write_last(trainer)
                return callback.last_model_path or None
        for callback in trainer.checkpoint_callbacks:
            if folder := getattr(callback, "dirpath", None):
                path = str(Path(folder) / "last.ckpt")
                trainer.save_checkpoint(path)
                return path
        return None


def _requeues() -> bool:
    """Whether this process runs in a SLURM job, which can be requeued."""
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
