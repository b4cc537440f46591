"""The processes of one run end together, and the error that caused the end is shown once.

Lightning starts the other processes of a machine by running the script again. When one of them fails, the others fail
as well or wait for it in a collective, and their messages would bury its error. So the first process to fail claims
the fault by creating a file, and the others stay silent; rank 0 watches them, and they end when it does. Processes
started by torchrun or SLURM are left to their launcher.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed
from lightning.pytorch import Trainer

from zoo._lightning import observe_processes, started_by_script
from zoo.distributed.signals import ENDING, Stopped
from zoo.distributed.unresponsive import is_lost_connection, naming_unresponsive

FAULT_FOLDER = "ZOO_PROCESSES"  # environment variable: folder in which the processes of a run claim a fault
GRACE_PERIOD = 10.0  # seconds that a process has to end by itself
HEAD_START = 2.0  # seconds that rank 0 has to report an error that all processes raise
POLL_INTERVAL = 0.5  # seconds between two checks of the other processes


@contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """Runs the Trainer inside the context; on rank 0 of a machine it lasts until the other processes have ended."""
    if FAULT_FOLDER in os.environ:
        with _started_process(Path(os.environ[FAULT_FOLDER])), naming_unresponsive():
            yield
            end_communication()
    elif started_by_script(trainer):
        with _first_process(), naming_unresponsive():
            yield
            # Before waiting for the others: under NCCL their end of the communication waits for this one.
            end_communication()
    else:
        with naming_unresponsive():
            yield


def end_communication() -> None:
    """Destroys the process group, if there is one, and so ends gloo's threads.

    After a collective has returned, such a thread still needs the interpreter's lock to release its tensors; if the
    interpreter is shutting down by then, the process is aborted. Lightning destroys the group for NCCL only. Do not
    call this after an error: a pending collective may never return.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Watch:
    """Watches the processes that rank 0 started, instead of Lightning's observer, which kills rank 0 with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: list[subprocess.Popen] = []
        self.over = threading.Event()

    def begin(self, others: list[subprocess.Popen]) -> None:
        self.others = others
        threading.Thread(target=self._poll, daemon=True).start()

    def failed(self) -> subprocess.Popen | None:
        """A process that has ended with an error."""
        return next((process for process in self.others if process.poll()), None)

    def wait_for_failure(self) -> subprocess.Popen | None:
        """A process that fails within the grace period; None if all end well, or none fails."""
        end = time.monotonic() + GRACE_PERIOD
        while not self.failed() and any(p.poll() is None for p in self.others) and time.monotonic() < end:
            time.sleep(POLL_INTERVAL / 5)
        return self.failed()

    def terminate(self) -> None:
        """Ends the processes, of which those that have no reason to end would wait for this one."""
        for process in self.others:
            process.terminate()
        self.wait_for_failure()
        self.kill()

    def kill(self) -> None:
        for process in self.others:
            process.kill()
        for process in self.others:
            process.wait()

    def report(self, process: subprocess.Popen) -> None:
        """Prints which signal ended a process; one that ended by itself has reported its own error."""
        number = next((n for n in ENDING if process.returncode == 128 + n), -process.returncode)
        if number > 0:
            name = signal.Signals(number).name
            message = f"rank {self.others.index(process) + 1} was ended by {name}; all other processes were stopped"
            print(f"zoo: error: {message}", file=sys.stderr, flush=True)

    def _poll(self) -> None:
        while not self.over.wait(POLL_INTERVAL):
            failed = self.failed()
            # Usually the main thread fails as well; otherwise it would wait for the dead process forever.
            if failed and not self.over.wait(GRACE_PERIOD):
                self.report(failed)
                self.kill()
                shutil.rmtree(self.folder, ignore_errors=True)
                os._exit(max(failed.returncode, 1))


@contextmanager
def _first_process() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="zoo-processes-"))
    watch = _Watch(folder)
    os.environ[FAULT_FOLDER] = str(folder)
    try:
        with observe_processes(watch.begin):
            yield
            for process in watch.others:
                process.wait()
            if failed := watch.failed():
                watch.report(failed)
                raise SystemExit(max(failed.returncode, 1))
    except Stopped:
        watch.terminate()
        raise
    except SystemExit:
        watch.wait_for_failure()  # the others are ending too
        raise
    except Exception as error:
        watch.over.set()
        if _is_own(error) and _claim(folder):
            watch.kill()
            raise
        failed = watch.wait_for_failure()
        watch.kill()
        if failed is None:
            raise
        watch.report(failed)
        raise SystemExit(max(failed.returncode, 1)) from None
    finally:
        watch.over.set()
        del os.environ[FAULT_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started_process(folder: Path) -> Iterator[None]:
    threading.Thread(target=_end_with, args=(os.getppid(), folder), daemon=True).start()
    try:
        yield
    except Exception as error:
        # Rank 0 ends this process, once it has raised the same error or the fault has been shown.
        if _is_own(error):
            time.sleep(HEAD_START)
        if not (_is_own(error) and _claim(folder)):
            time.sleep(GRACE_PERIOD)
        raise


def _end_with(parent: int, folder: Path) -> None:
    """Ends this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _is_own(error: Exception) -> bool:
    """Whether an error is more than the lost connection to another process."""
    return not is_lost_connection(error)


def _claim(folder: Path) -> bool:
    """Whether this process is the first one to fail."""
    try:
        (folder / "fault").touch(exist_ok=False)
    except OSError:
        return False
    return True
