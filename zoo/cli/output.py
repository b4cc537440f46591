"""Standard output and error of the commands, which go on when nobody reads them any longer: `fit … | head`.

And whether there is a screen beside them.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any


def outlive_readers() -> None:
    """Discards what is printed once the program that reads it through a pipe has ended, instead of ending, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # replaced by a caller
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            continue
        stream.flush()
        buffer = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
        lasting = io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
        setattr(sys, name, lasting)


def has_screen() -> bool:
    """Whether a person is at a terminal that windows can open beside."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


class _Pipe(io.FileIO):
    """A pipe that becomes /dev/null when its reader has ended."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for processes that are started later, too
            os.close(null)
            return len(data)
