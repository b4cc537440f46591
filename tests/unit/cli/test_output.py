"""Output that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers.command import CHECKOUT

SCRIPT = """
import os, sys
from zoo.cli.main import main

main(["list"])
sys.stdout.flush()
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print("nobody reads this", file=stream, flush=True)
os.system("echo nor this")
open("done", "w").close()
"""


def test_a_command_goes_on_when_the_reader_of_its_output_has_ended(tmp_path):
    for number in (1, 2):  # standard output, then both
        reader, writer = os.pipe()
        os.close(reader)
        error = writer if number == 2 else subprocess.DEVNULL
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], stdout=writer, stderr=error, cwd=tmp_path, env=environment
        )
        os.close(writer)
        assert done.returncode == 0
        (tmp_path / "done").unlink()
