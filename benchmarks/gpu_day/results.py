"""Results of an item as a small JSON file that is written after every part, and read again by the next call."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What is kept of an output or a traceback: its last lines, each cut.
LINES, WIDTH = 15, 300

#: A measurement, which returns plain values.
Part = Callable[[], Mapping[str, Any]]


class Skipped(Exception):  # noqa: N818, as it is no error
    """A part that cannot be measured here; the message is the reason."""


@dataclass(frozen=True)
class Options:
    """What all items are told.

    Attributes:
        device: "cuda" or "cpu".
        tiny: whether models, data and numbers of steps are as small as possible, to rehearse.
        data: folder of the real datasets; None for synthetic data.
    """

    device: str = "cuda"
    tiny: bool = False
    data: str | None = None

    @property
    def accelerator(self) -> str:
        """Name of the device for Lightning's Trainer."""
        return "gpu" if self.device == "cuda" else self.device

    def steps(self, count: int, tiny: int) -> int:
        """A number of steps, or that of a rehearsal."""
        return tiny if self.tiny else count


def last_lines(text: str) -> list[str]:
    """The last lines of an output that are not empty."""
    return [line.rstrip()[:WIDTH] for line in text.splitlines() if line.strip()][-LINES:]


class Results:
    """Parts of an item: what each has found, or why it has not.

    A part's status is "running", "done", "skipped", "failed", or "cut off" (by the end of the call: it is repeated in
    the next call, once).

    Args:
        path: path to the file; read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.complete: bool = found.get("complete", False)
        self.error: list[str] = found.get("error", [])
        self.parts: dict[str, dict[str, Any]] = found.get("parts", {})

    @property
    def running(self) -> str | None:
        """Name of the part that is running, or was when its process ended."""
        return next((name for name, part in self.parts.items() if part["status"] == "running"), None)

    def due(self, name: str) -> bool:
        """Whether a part has yet to be measured."""
        return self.parts.get(name, {}).get("status") in (None, "cut off")

    def measure(self, name: str, part: Part) -> None:
        """Runs a part in this process and keeps what it returns, or how it failed."""
        again = {"again": True} if name in self.parts else {}
        self._keep(name, status="running", **again)
        start = time.perf_counter()
        try:
            found: dict[str, Any] = {"status": "done", "result": dict(part())}
        except Skipped as reason:
            found = {"status": "skipped", "error": [str(reason)]}
        except Exception:
            found = {"status": "failed", "error": last_lines(traceback.format_exc())}
        self._keep(name, **found, seconds=round(time.perf_counter() - start, 1))

    def fail(self, name: str, reason: str, output: str) -> None:
        """Keeps that the process of a part has ended."""
        self._keep(name, status="failed", error=[reason, *last_lines(output)])

    def cut_off_running(self) -> None:
        """Keeps that a call has ended in the part that was running, if there is one; for the second time it fails."""
        name = self.running
        if name is None:
            return
        if self.parts[name].get("again"):
            self.fail(name, "cut off by the end of two calls: give it more --minutes", "")
        else:
            self._keep(name, status="cut off")

    def finish(self, error: str = "") -> None:
        """Keeps that nothing is left to do, or that the item failed outside of its parts."""
        self.complete, self.error = True, last_lines(error)
        self._write()

    def _keep(self, name: str, **part: Any) -> None:
        self.parts[name] = part
        self._write()

    def _write(self) -> None:
        text = json.dumps({"complete": self.complete, "error": self.error, "parts": self.parts}, indent=1)
        new = self.path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.path)
