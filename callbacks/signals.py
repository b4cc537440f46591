"""Orderly end of a run on SIGTERM, Ctrl-C and SLURM's signal: training ends after a batch, with a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo._lightning import after_each_batch, no_signal_handlers
from zoo.callbacks.best_and_last import BestAndLastCheckpoint
from zoo.distributed.signals import SignalHandlers, Stopped

BATCHES = 10  # batches between two collectives in which the processes share received signals


class StopOnSignal(Callback):
    """Ends a run on SIGTERM and Ctrl-C, with the exit code 128 + the signal's number; training saves a checkpoint.

    Training stops after the current batch and a validation that is due, so that the checkpoint resumes exactly.
    Everything else ends at once: set-up, the sanity check, `validate`, `test` and `predict`. A second signal of any
    kind ends the process. If SLURM is to requeue the job (`#SBATCH --signal=SIGUSR1@90` and `--requeue`), SIGUSR1 ends
    training like the others, and requeues the job.

    Lightning's own handling is replaced: on Ctrl-C it stops in the middle of a batch and exits with 1, on SIGTERM it
    saves nothing and may exit with 0, and on SLURM's signal it saves in the middle of a batch.
    """

    def __init__(self) -> None:
        self._handlers = SignalHandlers()
        self._entered = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        no_signal_handlers(trainer)
        self._handlers = SignalHandlers.active or self._entered.enter_context(SignalHandlers())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _requeues():
            self._handlers = self._entered.enter_context(SignalHandlers(signal.SIGUSR1))
        self._handlers.deferred = self._announce
        self._entered.callback(after_each_batch(trainer, lambda: self._stop_if_signalled(trainer)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _announce(self, number: int) -> None:
        name = signal.Signals(number).name
        rank_zero_info(f"{name}: stopping after this batch; a second signal ends the process")

    def _restore(self) -> None:
        self._handlers.deferred = None
        self._entered.close()

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        if number := self._shared_signal(trainer):
            self._stop(trainer, number)

    def _shared_signal(self, trainer: Trainer) -> int:
        """Number of the signal that any process has received, 0 for none; the same in all processes."""
        number = self._handlers.received or 0
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
