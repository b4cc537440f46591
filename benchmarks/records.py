"""Published figures as data: docs/results/data/ has a file for each page, with its tables, their rows and metrics.

A file has `page`, what is true of all its tables (such as `torch` and `hardware`), and `tables` by name. A table has

    command: what measures it, with the placeholders {seeds}, {seed}, {data}, {ckpt_path} (below)
    seeds: list of random seeds
    columns, cells: titles, and a template for each cell of a row; a table without columns is not shown in the page
    lines: lists of cells, instead of one line for each row, for a table that is laid out in another way
    prose: templates of what the page must say in its text
    rows: by name, each with `metrics`, a `label`, and other texts for the cells; what it does not have is its table's,
        and what that does not have is its page's

The name of a row is TABLE/ROW. `output` is its name in the lines of JSON that the command prints. A metric is

    3.69 ± 0.54       mean and standard deviation over the seeds, followed by the values in parentheses where these have
                      fewer decimals
    [3.1, 3.9, 4.2]   a value for each seed
    34 to 38          the smallest and the largest value
    1.3               a single value

in the units of the lines of JSON; numbers keep the decimals that they are written with. `{fd}` in a template is a
metric as it is written, `{fd:.2f}` the mean with its standard deviation, `{acc:p}` the same in percent, `{acc:%}` with
the sign, `{fd.each}` the values, `{n}` the number of seeds. In `lines` and `prose` metrics are named in full, such as
`{gan-digits/recipe.fd}`.

Of a row that `cli.py fit` measures, metrics have the names that the run logs: the last value counts, or as `take` says
(min, max); with `test: best` also those of the test of that checkpoint, and `cpu_seconds` are those of the fit.

Placeholders: {seeds} is the number of seeds; a command with {seed} is run for each seed; {data} is the folder of the
datasets, of which `needs` names files or folders, and `packages` the modules that must be installed; {ckpt_path} is a
checkpoint that the reader has trained. `tolerance` and `noise` have a number for each metric that
`benchmarks/judgment.py` needs one of; `not_judged` lists metrics that say more of the hardware, besides all seconds;
`cost` has about the CPU seconds of all seeds, where `cpu_seconds` is no metric; `note` and `source` are for the
reader.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from zoo.errors import UserError, nearest

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "docs" / "results" / "data"

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
PAIR = re.compile(rf"({NUMBER}) (±|to) ({NUMBER})(?: \(({NUMBER}(?:, {NUMBER})+)\))?")
SPEC = re.compile(r"(?P<comma>,?)(?:\.(?P<digits>\d+))?(?P<kind>[fp%]?)")


def _decimals(text: str) -> int:
    """Decimals that a number is written with: 2 of "3.69", 4 of "3e-4"."""
    mantissa, _, exponent = text.partition("e")
    return max(0, len(mantissa.partition(".")[2]) - int(exponent or 0))


@dataclass(frozen=True)
class Values:
    """The values of a metric one by one, for templates."""

    metric: Metric

    def __format__(self, spec: str) -> str:
        return ", ".join(self.metric.written(value, spec) for value in self.metric.values)


@dataclass(frozen=True)
class Metric:
    """A published figure.

    Attributes:
        mean: mean over the seeds; the middle of a range.
        std: standard deviation over the seeds; None if it is not on record, or of a single value.
        values: value of each seed; empty if they are not on record.
        low, high: ends of a range.
        decimals: decimals that it is written with.
        text: what is written in the file.
    """

    mean: float
    std: float | None = None
    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    decimals: int = 0
    text: str = ""

    @classmethod
    def parse(cls, value: str | Sequence[str]) -> Metric:
        """Reads a metric as it stands in a file.

        Raises:
            UserError: it has none of the forms.
        """
        texts = [value] if isinstance(value, str) else list(value)
        if isinstance(value, str) and (found := re.fullmatch(PAIR, value)):
            first, word, second, each = found.groups()
            decimals = max(_decimals(first), _decimals(second))
            a, b = float(first), float(second)
            if word == "to":
                return cls((a + b) / 2, low=a, high=b, decimals=decimals, text=value)
            values = tuple(map(float, each.split(", "))) if each else ()
            return cls(a, b, values, decimals=decimals, text=value)
        if not texts or not all(isinstance(text, str) and re.fullmatch(NUMBER, text) for text in texts):
            raise UserError(f"a metric is {value!r}; write 3.69 ± 0.54, [3.1, 3.9], 34 to 38 or 1.3")
        return cls.of([float(text) for text in texts], max(map(_decimals, texts)), ", ".join(texts))

    @classmethod
    def of(cls, values: Sequence[float], decimals: int = 6, text: str = "") -> Metric:
        """The metric of these values, one for each seed."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.mean(values), std, tuple(values), decimals=decimals, text=text)

    @property
    def each(self) -> Values:
        """The values one by one."""
        if not self.values:
            raise UserError(f"the values of {self.text!r} are not on record one by one")
        return Values(self)

    @property
    def complement(self) -> Metric:
        """One minus the metric, such as an error for an accuracy."""
        if self.values:
            return Metric.of([1 - value for value in self.values], self.decimals)
        return replace(self, mean=1 - self.mean, text="")

    def written(self, value: float, spec: str) -> str:
        """A number by a format: ".2f", "p" (percent), "%" (percent with its sign), with "," for thousands."""
        found = SPEC.fullmatch(spec)
        if found is None:
            raise UserError(f"a number cannot be written by {spec!r}; use f, p or %, such as .2f")
        percent = found["kind"] in ("p", "%")
        digits = int(found["digits"]) if found["digits"] else max(0, self.decimals - 2 * percent)
        sign = "%" if found["kind"] == "%" else ""
        return f"{value * (100 if percent else 1):{found['comma']}.{digits}f}{sign}"

    def __format__(self, spec: str) -> str:
        if self.text and not spec and (len(self.values) < 2 or "±" in self.text):
            return self.text
        if self.low is not None and self.high is not None:
            return f"{self.written(self.low, spec)} to {self.written(self.high, spec)}"
        if self.std is None:
            return self.written(self.mean, spec)
        mean, std = (self.written(value, spec).rstrip("%") for value in (self.mean, self.std))
        return f"{mean} ± {std}{'%' if spec.endswith('%') else ''}"


@dataclass(frozen=True)
class Row:
    """A row of a table, or a figure of the text: what was measured, and how.

    Attributes:
        name: TABLE/ROW.
        metrics: figures by name.
        fields: everything else, the table's and the page's included.
    """

    name: str
    metrics: Mapping[str, Metric]
    fields: Mapping[str, Any]

    @property
    def command(self) -> str:
        """What measures it; empty for a figure of others."""
        return self.fields.get("command", "")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Random seeds."""
        return tuple(int(seed) for seed in self.fields.get("seeds", ()))

    @property
    def cost(self) -> float | None:
        """CPU seconds of all seeds, if they are on record."""
        if "cost" in self.fields:
            return float(self.fields["cost"])
        metric = self.metrics.get("cpu_seconds")
        return None if metric is None else metric.mean * max(1, len(self.seeds))

    @cached_property
    def namespace(self) -> SimpleNamespace:
        """Metrics and texts as attributes, for templates."""
        return SimpleNamespace(n=len(self.seeds), **self.fields, **self.metrics)


@dataclass(frozen=True)
class Table:
    """A table of a page; see the head of this file.

    Attributes:
        name: name of the table.
        page: path of the page from the root of the checkout.
        rows: rows by their full names.
        fields: everything else.
    """

    name: str
    page: str
    rows: Mapping[str, Row]
    fields: Mapping[str, Any]


class Records:
    """Everything in the folder of records.

    Args:
        folder: folder of the files.

    Attributes:
        tables: tables by name, those of a page in its order.
        rows: rows by their full names.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.tables: dict[str, Table] = {}
        self.rows: dict[str, Row] = {}
        for path in sorted(folder.glob("*.yaml")):
            for table in read(path):
                if table.name in self.tables:
                    raise UserError(f"{path.name} has a second table {table.name}; give it another name")
                self.tables[table.name] = table
                self.rows |= table.rows

    def find(self, name: str) -> list[Row]:
        """The row of a name, or the rows of a table.

        Raises:
            UserError: there is none; the message names similar ones.
        """
        if name in self.tables:
            return list(self.tables[name].rows.values())
        if name not in self.rows:
            near = nearest(name, [*self.rows, *self.tables])
            raise UserError(f"there is no row {name!r}{near}; --list shows all of them")
        return [self.rows[name]]

    def fill(self, template: str, row: Row | None = None) -> str:
        """A template with its metrics and texts: those of a row by their own names, all by full names."""
        known = {name: one.namespace for name, one in self.rows.items()}
        own = vars(row.namespace) if row else {}
        try:
            return template.format(**own, **known)
        except (KeyError, AttributeError, IndexError) as error:
            where = f" of {row.name}" if row else ""
            raise UserError(f"the template {template!r}{where} names {error}, which is not on record") from error


def read(path: Path) -> Iterator[Table]:
    """Tables of a file.

    Raises:
        UserError: it is no YAML, or a metric has none of the forms.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # keeps numbers as they are written
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    of_page = {key: value for key, value in content.items() if key not in ("page", "tables")}
    for name, fields in content["tables"].items():
        shared = of_page | {key: value for key, value in fields.items() if key != "rows"}
        rows = {}
        for key, entries in fields.get("rows", {}).items():
            own = {entry: value for entry, value in entries.items() if entry != "metrics"}
            metrics = {}
            for metric, value in entries.get("metrics", {}).items():
                try:
                    metrics[metric] = Metric.parse(value)
                except UserError as error:
                    raise UserError(f"{path.name}, {name}/{key}, {metric}: {error}") from error
            rows[f"{name}/{key}"] = Row(f"{name}/{key}", metrics, {**shared, **own})
        yield Table(name, content["page"], rows, shared)
