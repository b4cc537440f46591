"""Ends of a process by SIGTERM or Ctrl-C: the first signal ends its work in order, a second one the process at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Signals that end a command, of which any second one ends the process.
ENDING = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Ends the process with the exit code of a process that was ended by a signal, 128 + its number.

    Args:
        number: number of the signal.
        message: line that the command line prints; empty if everything has been said.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.number, self.message = number, message


class SignalHandlers:
    """Handlers of signals, as a context: the first signal raises `Stopped` in the main thread, or calls `deferred`.

    A second signal of any kind ends the process at once, also while the main thread is in native code such as a
    collective that waits for another process. In another thread than the main one the context does nothing.

    Args:
        *further: further signals to handle like `ENDING`.

    Attributes:
        received: number of the first signal; None before it.
        deferred: called with the number of the first signal instead of raising `Stopped`, if it is set.
    """

    active: SignalHandlers | None = None

    def __init__(self, *further: int) -> None:
        self.received: int | None = None
        self.deferred: Callable[[int], None] | None = None
        self._numbers = (*ENDING, *further)
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._outer: SignalHandlers | None = None
        self._wakeup: socket.socket | None = None
        self._counter: threading.Thread | None = None

    def __enter__(self) -> SignalHandlers:
        if threading.current_thread() is threading.main_thread():
            self._outer, SignalHandlers.active = SignalHandlers.active, self
            self._watch_native_code()
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        SignalHandlers.active = self._outer
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            self._wakeup.close()
        if self._counter is not None:
            self._counter.join(timeout=1)  # reads the end of its file; no thread is left at the interpreter's end

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a forked process, such as a DataLoader's worker, which its parent ends
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received = number
        for one in self._before:
            signal.signal(one, signal.SIG_DFL)  # a second signal ends the process
        if self.deferred is None:
            raise Stopped(number, f"stopped by {signal.Signals(number).name}")
        self.deferred(number)

    def _watch_native_code(self) -> None:
        """Starts a thread that ends the process on a second signal if the main thread has not handled the first one.

        Python runs handlers between two instructions of the main thread; the number of a signal is written to a file
        descriptor at once.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if before != -1:  # that of outer handlers, whose thread does the same, or of an event loop
            signal.set_wakeup_fd(before)
            reader.close()
            writer.close()
            return
        self._wakeup = writer
        self._counter = threading.Thread(target=self._count, args=(reader,), daemon=True, name="zoo-signals")
        self._counter.start()

    def _count(self, reader: socket.socket) -> None:
        seen = 0
        with reader:
            while data := reader.recv(1):
                seen += data[0] in self._numbers
                if seen == 2:
                    os._exit(128 + data[0])


def _leave_wakeup() -> None:
    """In a forked process: its signals are not its parent's."""
    if SignalHandlers.active is not None:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_wakeup)
