"""The results of all items as tables in Markdown, and the machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.results import Options, Results
from benchmarks.gpu_day.supervise import Item

PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "torchvision",
    "numpy",
    "matplotlib",
    "jsonargparse",
    "wandb",
    "pytest",
)


def write(path: Path, items: Sequence[Item], folder: Path, options: Options) -> None:
    """Writes the report.

    Args:
        path: path to the Markdown file.
        items: all items.
        folder: folder of their results.
        options: what they were told.
    """
    lines = ["# A day on a GPU", "", *machine(options), ""]
    for item in items:
        lines += section(item, Results(folder / f"{item.name}.json"))
    path.write_text("\n".join(lines), encoding="utf-8")


def machine(options: Options) -> list[str]:
    """Lines on the machine and the versions of packages."""
    lines = [
        f"- Python {platform.python_version()}, {platform.machine()}, device {options.device}, data {options.data}"
    ]
    if options.tiny:
        lines.append("- A rehearsal in tiny sizes: its times and figures mean nothing.")
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(query, capture_output=True, text=True, timeout=60)
            lines += [f"- GPU: {line}" for line in found.stdout.splitlines()]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return [*lines, f"- {', '.join(f'{name} {version}' for name, version in versions.items())}"]


def section(item: Item, results: Results) -> list[str]:
    """An item's tables, one for parts with the same figures, and what failed."""
    state = "" if results.complete else " (not complete: call again with the same --out)"
    lines = [f"## {item.title}{state}", ""]
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for name, part in results.parts.items():
        if part["status"] == "done":
            figures = part["result"]
            tables.setdefault(tuple(figures), []).append([name, *map(in_cell, figures.values()), f"{part['seconds']}"])
    for header, rows in tables.items():
        lines += [*table(["", *header, "took, s"], rows), ""]
    for name, part in results.parts.items():
        if part["status"] == "skipped":
            lines += [f"- {name} was skipped: {part['error'][0]}"]
        elif part["status"] != "done":
            lines += [f"- **{name}: {part['status']}**", *code(part.get("error", []))]
    return [*lines, *(["The item itself failed:", *code(results.error)] if results.error else []), ""]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def in_cell(value: Any) -> str:
    """A value in one cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_cell(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "<br>".join(map(in_cell, value))
    if value is None:
        return "-"
    text = f"{value:.3g}" if isinstance(value, float) and 0 < abs(value) < 1e-3 else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def code(lines: Sequence[str]) -> list[str]:
    """Lines as they are, below an entry of a list."""
    return ["", "  ```text", *(f"  {line}" for line in lines), "  ```", ""] if lines else []
