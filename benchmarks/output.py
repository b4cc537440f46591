"""Command line and output of the benchmarks: parser, lines of JSON, Markdown tables."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the description as it stands, and the default of every option whose help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default is None or action.default is False or "(default:" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser that shows a module's docstring and the default of each option."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    prog = f"python -m {spec.name}" if spec is not None and spec.name.startswith("benchmarks.") else None
    return argparse.ArgumentParser(prog, description=description, formatter_class=_HelpFormatter)


def check_new(parser: argparse.ArgumentParser, path: Path) -> None:
    """Ends the program with a message if the file exists, before anything is computed for it."""
    if path.exists():
        parser.error(f"--out {path} exists already")


def report(row: str, seed: int | None = None, **metrics: Any) -> None:
    """Prints what was measured as a line of JSON, from which `benchmarks.reproduce` and the records are made.

    Args:
        row: name of the row of a table; several lines of a row and a seed add up.
        seed: random seed; None for what has none.
        **metrics: numbers by name, rounded to six digits, and texts.
    """
    rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in metrics.items()}
    of_seed = {} if seed is None else {"seed": seed}
    print(json.dumps({"row": row, **of_seed, **rounded}, ensure_ascii=False), flush=True)


def mean_std(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation, "1.23 ± 0.04"; the mean alone of a single value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table of one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in lines)
