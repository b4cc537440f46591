"""The processes of one run end together, and the error that mattered is shown, once.

Lightning starts the other processes of a machine by repeating what was typed. Where one of them fails, the others fail
too, or wait for it in a communication: what they say of that would bury its error. So the first process to fail by
itself says so in a file, and the others stay silent; the first one watches them, and they end when it does. Processes
that torchrun or SLURM have started are theirs to end.
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
from lightning.pytorch.strategies.launchers import subprocess_script

FOLDER = "ZOO_PROCESSES"  # environment variable: where the processes of a run leave word of a fault
PATIENCE = 10.0  # seconds that a process has for ending by itself
HEAD_START = 2.0  # seconds that the first process has for saying what all processes have noticed
PERIOD = 0.5  # seconds between two looks at the others


@contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """Runs the Trainer inside; on a machine's first process it lasts until the others have ended."""
    launcher = trainer.strategy.launcher
    if FOLDER in os.environ:
        with _started_process(Path(os.environ[FOLDER])):
            yield
            end_communication()
    elif isinstance(launcher, subprocess_script._SubprocessScriptLauncher) and not (
        launcher.cluster_environment.creates_processes_externally
    ):
        with _first_process():
            yield
            # Before it waits for the others, whose end of a communication by NCCL waits for this one's.
            end_communication()
    else:
        yield


def end_communication() -> None:
    """Leaves the group of processes, if there is one, and ends the threads that gloo has for it.

    Such a thread lets go of the last communication's tensors a moment after that has returned, for which it needs the
    interpreter's lock; where the interpreter has begun to end by then, the process is aborted. Lightning takes care of
    that for NCCL only. Not to be called after an error: others may never answer what is still under way.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Watch:
    """Looks after the processes that the first one has started, in place of Lightning's observer.

    That one kills this process with the others, whatever it is about to say or to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: list[subprocess.Popen] = []
        self.over = threading.Event()

    def begin(self, others: list[subprocess.Popen]) -> None:
        self.others = others
        threading.Thread(target=self._look, daemon=True).start()

    def failed(self) -> subprocess.Popen | None:
        """One that has ended with an error."""
        return next((process for process in self.others if process.poll()), None)

    def wait_for_failure(self) -> subprocess.Popen | None:
        """One that ends with an error within the time that it has; None where all have ended well, or none has."""
        end = time.monotonic() + PATIENCE
        while not self.failed() and any(p.poll() is None for p in self.others) and time.monotonic() < end:
            time.sleep(PERIOD / 5)
        return self.failed()

    def kill(self) -> None:
        for process in self.others:
            process.kill()
        for process in self.others:
            process.wait()

    def report(self, process: subprocess.Popen) -> None:
        """Says what ended a process that could not say it by itself."""
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            rank = self.others.index(process) + 1
            message = f"process {rank} (counted from 0) was ended by {name}, and the other processes with it"
            print(f"zoo: error: {message}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        while not self.over.wait(PERIOD):
            failed = self.failed()
            # Most often the main thread fails by it as well; else it would wait for the dead process forever.
            if failed and not self.over.wait(PATIENCE):
                self.report(failed)
                self.kill()
                shutil.rmtree(self.folder, ignore_errors=True)
                os._exit(1)


@contextmanager
def _first_process() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="zoo-processes-"))
    watch = _Watch(folder)
    observer = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = watch.begin  # type: ignore[assignment]
    os.environ[FOLDER] = str(folder)
    try:
        yield
        for process in watch.others:
            process.wait()
        if failed := watch.failed():
            watch.report(failed)
            raise SystemExit(max(failed.returncode, 1))
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
        subprocess_script._launch_process_observer = observer
        del os.environ[FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started_process(folder: Path) -> Iterator[None]:
    threading.Thread(target=_end_with, args=(os.getppid(), folder), daemon=True).start()
    try:
        yield
    except Exception as error:
        # The first process ends this one, when it has the same error, or when the fault has been shown.
        if _is_own(error):
            time.sleep(HEAD_START)
        if not (_is_own(error) and _claim(folder)):
            time.sleep(PATIENCE)
        raise


def _end_with(parent: int, folder: Path) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _is_own(error: Exception) -> bool:
    """Whether an error is more than the loss of another process."""
    return not (isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error))


def _claim(folder: Path) -> bool:
    """Whether this process is the first one to fail."""
    try:
        (folder / "fault").touch(exist_ok=False)
    except OSError:
        return False
    return True
