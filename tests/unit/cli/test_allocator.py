import os
import subprocess
import sys

import pytest

from zoo.cli.allocator import keep_freed_memory
from zoo.cli.main import COMMANDS, main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")

#: Page faults while blocks of 24 MB, 6,000 pages each, are filled and freed twenty times.
COUNT_FAULTS = """
import resource
from zoo.cli.allocator import keep_freed_memory

keep_freed_memory()
faults = []
for _ in range(21):
    block = bytearray(b"x") * (24 << 20)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""


def count_faults(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", COUNT_FAULTS]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again_without_page_faults():
    assert count_faults() < 1000


def test_the_allocator_is_left_as_the_user_set_it():
    assert count_faults(MALLOC_TRIM_THRESHOLD_="131072") > 100_000


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(system, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    assert not keep_freed_memory()


def test_tunables_of_glibc_are_the_users_choice(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")
    assert not keep_freed_memory()


def test_commands_that_compute_set_the_allocator_and_those_that_read_files_do_not(monkeypatch):
    called, ran = [], []
    monkeypatch.setattr("zoo.cli.main.keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr("zoo.cli.allocator.ran", ran.append, raising=False)
    for command in ("sample", "list"):
        monkeypatch.setitem(COMMANDS, command, ("zoo.cli.allocator", "ran"))
        main([command])
    assert ran == [["sample"], ["list"]]
    assert called == [True]
