"""Runs items in processes of their own, so that a crash or a hang costs one part and no more.

Imports the standard library only. As a program it is that process: `python -m benchmarks.gpu_day.supervise ITEM FILE
OPTIONS` measures the parts of an item that are due.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

from benchmarks.gpu_day.checkout import CHECKOUT
from benchmarks.gpu_day.results import Options, Part, Results

#: Seconds of a call below which no process is started.
LEAST_TIME = 5.0


@dataclass(frozen=True)
class Item:
    """A group of measurements.

    Attributes:
        name: name of its file.
        title: heading in the report.
        parts: module and name of the function from `Options` to its parts by name, as "module:function".
        limit: seconds after which a part counts as hanging.
    """

    name: str
    title: str
    parts: str
    limit: float

    def load(self, options: Options) -> Mapping[str, Part]:
        """The parts by name, in their order."""
        module, _, function = self.parts.partition(":")
        return getattr(import_module(module), function)(options)


def run_here(item: Item, options: Options, path: Path) -> None:
    """Measures what is due of an item in this process."""
    results = Results(path)
    results.cut_off_running()
    try:
        parts = item.load(options)
    except Exception:
        results.finish(traceback.format_exc())
        return
    for name, part in parts.items():
        if results.due(name):
            results.measure(name, part)
    results.finish()


def run_apart(item: Item, options: Options, path: Path, deadline: float) -> None:
    """Measures what is due of an item in another process, and in a new one after each part that ends it.

    Args:
        item: item to measure.
        options: what it is told.
        path: file of its results.
        deadline: end of the call, as `time.monotonic` counts.
    """
    Results(path).cut_off_running()
    while not Results(path).complete and deadline - time.monotonic() > LEAST_TIME:
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = _start(item, options, path, output)
            try:
                end = _wait(process, item, path, deadline)
            finally:
                _end(process)
            output.seek(0)
            text = output.read()
        results = Results(path)
        running = results.running
        if end == "deadline":
            results.cut_off_running()
        elif running:
            results.fail(running, end, text)
        elif not results.complete:
            results.finish(f"{end}\n{text}")


def _start(item: Item, options: Options, path: Path, output: IO[str]) -> subprocess.Popen[bytes]:
    arguments = [json.dumps(asdict(item)), str(path), json.dumps(asdict(options))]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_day.supervise", *arguments],
        cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], item: Item, path: Path, deadline: float) -> str:
    """Waits for the end of an item's process, or ends it; returns how it ended."""
    part, since = None, time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=0.1)
            return f"the process ended with code {code}"
        now = time.monotonic()
        if (running := Results(path).running) != part:
            part, since = running, now
        if now >= deadline or now - since > item.limit:
            _end(process)
            return "deadline" if now >= deadline else f"ended after {item.limit:.0f} s without a result"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends an item's process and all that it has started, which are a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    run_here(Item(**json.loads(sys.argv[1])), Options(**json.loads(sys.argv[3])), Path(sys.argv[2]))
