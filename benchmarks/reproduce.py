"""Measures published rows again, and says whether they agree with what is on record.

ROW is a row of a table in docs/results/, or a table for all of its rows. Each row's command is run as it stands in the
pages, with its seeds or as many as `--seeds` says, one thread and without Weights & Biases, in a folder that is
deleted. Figures agree if they lie where `benchmarks/judgment.py` says: in the 95% prediction interval where a spread is
on record. Times are not judged, they are shown as a ratio to what is on record, since they are the hardware's. The exit
code is 1 if a figure does not agree. Usage:

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce gan-digits/recipe --seeds 1
    python -m benchmarks.reproduce gan-digits --data data

The last line of each row is what docs/results/data/ keeps of it. `--out` appends the same to a file as a line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.judgment import TOLERANCE, judge
from benchmarks.output import new_parser
from benchmarks.records import CHECKOUT, Metric, Records, Row
from zoo.errors import UserError

CLI = "python cli.py "

#: Entries of a row about single metrics, and what holds for the others.
OF_RECORD = {"tolerance": TOLERANCE, "noise": 0.0}

#: Values of a metric by seed, None for what has none.
Values = dict[int | None, float]
#: Values by metric, by name of a row in the output.
Found = dict[str, dict[str, Values]]

#: Runs a command, whose first word is "python", in a folder; returns the lines that it prints, and its CPU seconds.
Execute = Callable[[Sequence[str], Path], tuple[list[str], float]]


def execute(command: Sequence[str], folder: Path) -> tuple[list[str], float]:
    """Runs a command in a folder; returns the lines that it prints, which are shown too, and its CPU seconds.

    Raises:
        UserError: it fails.
    """
    paths = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment = {**quiet, **os.environ, "PYTHONPATH": paths}
    start = _seconds_of_children()
    lines = []
    with (folder / "stderr").open("w+", encoding="utf-8") as errors:
        arguments = [sys.executable, *command[1:]]
        with subprocess.Popen(
            arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if line.startswith("{"):
                    print(f"  {line}", end="", flush=True)
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    if process.returncode:
        raise UserError(f"{shlex.join(command)} ends with code {process.returncode}: {''.join(last)}")
    return lines, _seconds_of_children() - start


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seeds_of(row: Row, count: int | None) -> tuple[int, ...]:
    """The seeds of a row, or the first `count` of them and of those that follow; none for a row without seeds."""
    if count is None or not row.seeds:
        return row.seeds
    return tuple(range(row.seeds[0], row.seeds[0] + count))


def commands_of(row: Row, seeds: Sequence[int], data: str, ckpt_path: str | None) -> Iterator[str]:
    """Commands of a row: one for each seed, or one for all.

    Raises:
        UserError: it needs a checkpoint, and none is given.
    """
    command = row.command
    if "{seed" not in command and len(seeds) != len(row.seeds):
        command += " --seeds {seeds}"  # instead of the benchmark's own number
    if "{ckpt_path}" in command and ckpt_path is None:
        raise UserError(f"{row.name} needs --ckpt_path, {row.fields.get('ckpt_path', 'a checkpoint')}")
    known = {"data": shlex.quote(str(Path(data).resolve())), "seeds": len(seeds)}
    known["ckpt_path"] = shlex.quote(str(Path(ckpt_path or "").resolve()))
    for seed in seeds if "{seed}" in command else [None]:
        yield command.format(**known, seed=seed)


def check_needs(row: Row, data: str) -> None:
    """Raises a `UserError` if a row cannot be measured here."""
    if not row.command:
        raise UserError(f"{row.name} is not measured by a command: {row.fields.get('source', 'see its page')}")
    for name in row.fields.get("needs", ()):
        if not (Path(data) / name).exists():
            raise UserError(f"{row.name} needs {name} in the folder {data}; give the folder of your datasets as --data")
    for name in row.fields.get("packages", ()):
        if find_spec(name) is None:
            raise UserError(f"{row.name} needs the package {name.replace('_', '-')}: pip install it")


def found_in(lines: Iterable[str]) -> Found:
    """Numbers in the lines of JSON that `benchmarks.output.report` has printed."""
    found: Found = {}
    for line in lines:
        if not line.startswith('{"row"'):
            continue
        values = json.loads(line)
        row, seed = values.pop("row"), values.pop("seed", None)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                found.setdefault(row, {}).setdefault(name, {})[seed] = float(value)
    return found


def found_in_run(folder: Path, take: str) -> dict[str, float]:
    """Metrics that a run of `cli.py` has logged: the last value of each, or the smallest or largest one."""
    columns: dict[str, list[float]] = {}
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                for name, text in line.items():
                    if text:
                        columns.setdefault(name, []).append(float(text))
    pick: dict[str, Callable[[list[float]], float]] = {"last": lambda values: values[-1], "min": min, "max": max}
    return {name: pick[take](values) for name, values in columns.items()}


class Measurements:
    """Runs each command once, for all rows that share it.

    Args:
        run: what runs a command.
    """

    def __init__(self, run: Execute = execute) -> None:
        self.run = run
        self._printed_by: dict[str, Found] = {}
        self._seconds: dict[str, float] = {}

    def measure(self, row: Row, seeds: Sequence[int], data: str, ckpt_path: str | None) -> dict[str, list[float]]:
        """New values of the metrics of a row, one for each seed.

        Raises:
            UserError: a command fails, or does not print the row or one of its metrics.
        """
        values: dict[str, list[float]] = {}
        for command in commands_of(row, seeds, data, ckpt_path):
            if command.startswith(CLI):
                of_row = self._run_folder(command, row.fields.get("test", ""), row.fields.get("take", "last"))
            else:
                of_output, output = self._printed(command), row.fields.get("output", "")
                if output not in of_output:
                    raise UserError(f"the command of {row.name} prints no row {output!r}, but {', '.join(of_output)}")
                of_row = of_output[output]
            for name in row.metrics:
                if name not in of_row:
                    raise UserError(f"the command of {row.name} measures no {name}, but {', '.join(of_row)}")
                values.setdefault(name, []).extend(of_row[name].values())
        return values

    def cost(self, commands: Iterable[str]) -> float:
        """CPU seconds of commands that were run."""
        return sum(self._seconds[command] for command in commands)

    def _printed(self, command: str) -> Found:
        """What a benchmark prints."""
        if command not in self._printed_by:
            print(command, flush=True)
            with tempfile.TemporaryDirectory() as name:
                lines, self._seconds[command] = self.run(shlex.split(command), Path(name))
            self._printed_by[command] = found_in(lines)
        return self._printed_by[command]

    def _run_folder(self, command: str, checkpoint: str, take: str) -> dict[str, Values]:
        """What a run of `cli.py` has logged, its test included where a checkpoint is named."""
        print(command, flush=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cli = ["python", str(CHECKOUT / "cli.py")]
            _, seconds = self.run([*cli, *shlex.split(command.removeprefix(CLI)), "--run.root", "runs"], folder)
            if checkpoint:
                (path,) = folder.glob(f"runs/*/*/checkpoints/{checkpoint}.ckpt")
                logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs"]
                self.run([*cli, "test", "--ckpt_path", str(path), *logger], folder)
            self._seconds[command] = seconds
            found = {**found_in_run(folder, take), "cpu_seconds": seconds}
        return {metric: {None: value} for metric, value in found.items()}


def is_time(metric: str, row: Row) -> bool:
    """Whether a metric says more of the hardware than of the software."""
    return "second" in metric or metric in row.fields.get("not_judged", ())


def compare(row: Row, new: dict[str, list[float]]) -> tuple[list[str], bool]:
    """Lines that compare new values of a row with those on record, and whether all agree."""
    lines, agree = [], True
    for name, values in new.items():
        old = row.metrics[name]
        now = f"{Metric.of(values, old.decimals):.{max(old.decimals, 1)}f}"
        if is_time(name, row):
            ratio = statistics.mean(values) / old.mean
            lines.append(f"  {name}: {now}, {ratio:.2f} times the {old} on record (not judged)")
            continue
        tolerance, noise = (row.fields.get(key, {}).get(name, default) for key, default in OF_RECORD.items())
        found = judge(old, values, len(row.seeds), float(tolerance), float(noise))
        agree &= found.agrees
        digits = old.decimals + 1
        where = f"{found.low:.{digits}f} to {found.high:.{digits}f}, {found.rule}"
        lines.append(f"  {name}: {now}, on record {old}: {'agrees with' if found.agrees else 'OUTSIDE of'} {where}")
    return lines, agree


def here() -> dict[str, str]:
    """Hardware and versions of this machine."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    hardware = f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}"
    return {"hardware": hardware, "torch": version("torch").partition("+")[0], "python": platform.python_version()}


def overview(records: Records, data: str) -> Iterator[str]:
    """A line for each row that a command measures, with its CPU seconds and what is on record."""
    for row in records.rows.values():
        if not row.command:
            continue
        cost = "?" if row.cost is None else f"{row.cost:,.0f}"
        metrics = ", ".join(f"{name} {metric}" for name, metric in row.metrics.items() if not is_time(name, row))
        try:
            check_needs(row, data)
            lacking = ""
        except UserError as error:
            lacking = f" ({str(error).removeprefix(row.name).strip().partition(';')[0]})"
        yield f"{row.name:<50} {cost:>6}  {metrics}{lacking}"


def reproduce(row: Row, measurements: Measurements, options: argparse.Namespace) -> bool:
    """Measures a row and prints how it compares; whether all figures agree."""
    check_needs(row, options.data)
    seeds = seeds_of(row, options.seeds)
    new = measurements.measure(row, seeds, options.data, options.ckpt_path)
    cost = round(measurements.cost(commands_of(row, seeds, options.data, options.ckpt_path)))
    lines, agree = compare(row, new)
    environment = here()
    print(f"{row.name}, {len(seeds) or 1} of {len(row.seeds) or 1} seeds: {'agrees' if agree else 'DOES NOT AGREE'}")
    print("\n".join(lines))
    on_record = "; ".join(f"{name} {row.fields[name]}" for name in environment if name in row.fields)
    here_too = {**environment, "cost": f"{cost:,} CPU seconds"}
    print(f"  here: {'; '.join(f'{name} {value}' for name, value in here_too.items())}")
    print(f"  on record: {on_record}")
    if options.out:
        result: dict[str, Any] = {"row": row.name, "command": row.command, "seeds": seeds, "metrics": new}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**result, "cost": cost, **environment}) + "\n")
    rounded = (f"{name}: [{', '.join(f'{value:.6g}' for value in values)}]" for name, values in new.items())
    print(f"  metrics: {{{', '.join(rounded)}}}", flush=True)
    return agree


def main(args: Sequence[str] | None = None, run: Execute = execute) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows or tables to measure again")
    parser.add_argument("--list", action="store_true", help="list the rows with the CPU seconds of all their seeds")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: those on record)")
    parser.add_argument("--data", default="data", help="folder of the datasets")
    parser.add_argument("--out", type=Path, help="file to append lines of JSON to")
    parser.add_argument("--ckpt_path", help="path to a checkpoint, for rows that start from one")
    options = parser.parse_args(args)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it must be at least 1")
    if bool(options.rows) == options.list:
        parser.error("give a ROW, or --list for all of them")
    try:
        records = Records()
        if options.list:
            print(f"{'row':<50} {'CPU s':>6}  on record")
            print("\n".join(overview(records, options.data)))
            return
        rows = list({row.name: row for name in options.rows for row in records.find(name)}.values())
        for row in rows:  # before anything is computed
            check_needs(row, options.data)
            list(commands_of(row, seeds_of(row, options.seeds), options.data, options.ckpt_path))
        measurements = Measurements(run)
        results = [reproduce(row, measurements, options) for row in rows]
    except UserError as error:
        parser.error(str(error))
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
