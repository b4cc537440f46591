"""Work on all cores of one process."""

from __future__ import annotations

import threading
import time

import pytest

from zoo.pictures.threads import map_in_threads, usable_cores


def test_results_come_in_order_and_only_a_few_ahead():
    started = []

    def square(number: int) -> int:
        started.append(number)
        time.sleep(0.001 * (number % 3))
        return number**2

    ahead = 2 * usable_cores() + 2
    for number, result in enumerate(map_in_threads(square, range(100))):
        assert result == number**2
        assert len(started) <= number + ahead
    assert number == 99


def test_an_error_in_a_thread_is_passed_on_and_ends_the_others():
    started = []

    def fail(number: int) -> None:
        started.append(number)
        if number == 20:
            raise RuntimeError("twenty")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="twenty"):
        list(map_in_threads(fail, range(10_000)))
    assert len(started) < 200
    assert threading.active_count() == before
