"""The command `report`: makes the page of a run from its files, or a page that compares several runs.

It imports neither torch nor Lightning, so that it is quick, and its options are parsed without them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from zoo.cli.program import program
from zoo.errors import UserError, nearest
from zoo.files import output_path

DESCRIPTION = (
    "Makes the report of a run from the files in its folder: one HTML page that opens offline and can be mailed. With "
    "several folders, compares the runs: options that differ, metrics, curves, and samples beside each other."
)
COMPARISON = "comparison.html"
OPTIONS = ("--out", "--overwrite", "--help")


class _Parser(argparse.ArgumentParser):
    """Raises a `UserError` instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}; {self.prog} --help lists the options")


def run_report(args: Sequence[str]) -> None:
    """Parses the command line, writes the page, and prints where it is."""
    parser = _Parser(prog=f"{program()} report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, such as runs/gan/version_0."
    )
    default = f"report.html in the folder of the run; of several runs {COMPARISON}; with a number if it exists"
    parser.add_argument("--out", type=Path, help=f"file to write, .html (default: {default}).")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists.")
    given, unknown = parser.parse_known_args(list(args[1:]))
    for word in unknown:
        raise UserError(f"report has no option {word}{nearest(word.partition('=')[0], OPTIONS)}")
    if given.out is not None and given.out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {given.out} must end in .html")

    from zoo.report.page import PAGE, write_report
    from zoo.report.run import check_run

    runs = list({run.resolve(): run for run in given.runs}.values())  # each once
    for run in runs:
        check_run(run)
    single = runs[0] if len(runs) == 1 else None
    path = output_path(given.out, single / PAGE if single is not None else COMPARISON, given.overwrite)
    write_report(runs, path, program(), given.overwrite)
    print(f"wrote {path}")
