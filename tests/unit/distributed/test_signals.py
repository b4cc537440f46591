"""The first signal ends the work in order, a second one the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.command import CHECKOUT
from zoo.distributed.signals import ENDING, SignalHandlers, Stopped

#: Waits in native code, which no signal interrupts.
STUCK = """
import hashlib
from zoo.distributed.signals import SignalHandlers
with SignalHandlers():
    print("stuck", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_raises_and_leaves_the_second_one_of_either_kind_to_the_system(number):
    before = [signal.getsignal(one) for one in ENDING]
    with SignalHandlers() as handlers:
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        assert [signal.getsignal(one) for one in ENDING] == [signal.SIG_DFL] * 2
    assert stopped.value.code == 128 + number
    assert handlers.received == number
    assert [signal.getsignal(one) for one in ENDING] == before


def test_a_deferred_signal_does_not_raise():
    noted: list[int] = []
    with SignalHandlers() as handlers:
        handlers.deferred = noted.append
        os.kill(os.getpid(), signal.SIGINT)
    assert noted == [signal.SIGINT] == [handlers.received]


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_ends_a_process_that_is_stuck_in_native_code(first, second):
    with subprocess.Popen([sys.executable, "-c", STUCK], cwd=CHECKOUT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"stuck\n"
            time.sleep(0.2)  # until native code runs
            process.send_signal(first)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
            start = time.monotonic()
            process.send_signal(second)
            assert process.wait(10) == 128 + second
            assert time.monotonic() - start < 0.5
        finally:
            process.kill()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_ends_on_sigterm():
    with SignalHandlers() as handlers:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        time.sleep(0.05)  # in which the parent would end, if it took these signals for its own
        assert handlers.received is None
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
