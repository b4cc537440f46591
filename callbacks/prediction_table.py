"""Tables of predictions: their columns, and rows that are written to a CSV or Parquet file as they are computed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from zoo.contracts import ClassPrediction
from zoo.errors import UserError
from zoo.files import output_path, write_output

DEFAULT = "predictions.csv"
ENDINGS = (".csv", ".parquet")
CELLS_PER_GROUP = 2**22  # values of a row group of Parquet, which lies in memory until it is written

#: Types of a table's columns, `int`, `float` or `str`, by name.
Columns = Mapping[str, type]
#: Writes further rows: values by column. An absent column and None are empty cells.
WriteRows = Callable[[Mapping[str, Sequence[Any]]], None]


# Columns of predictions


UNCERTAINTY = {"entropy": float, "mutual_information": float}


def prediction_columns(class_names: Sequence[str]) -> dict[str, type]:
    """Columns of predictions: the most probable class, the probability of every class, and uncertainty in nats."""
    chosen = {"class": int, "class_name": str, "probability": float}
    return {**chosen, **dict.fromkeys(probability_columns(class_names), float), **UNCERTAINTY}


def probability_columns(class_names: Sequence[str]) -> list[str]:
    """One name of a column for each class: `p(cat)`.

    If a name is empty, or two differ by no more than case and spaces, which other programs cannot tell apart, the
    classes' numbers are part of all of them: `p(0: cat)`, `p(1: Cat)`.
    """
    distinct = {name.strip().casefold() for name in class_names} - {""}
    if len(distinct) == len(class_names):
        return [f"p({name})" for name in class_names]
    return [f"p({number}: {name})" for number, name in enumerate(class_names)]


def prediction_values(prediction: ClassPrediction, class_names: Sequence[str]) -> dict[str, list[Any]]:
    """The values of `prediction_columns` for a batch."""
    probability, chosen = prediction.probabilities.max(1)
    return {
        "class": chosen.tolist(),
        "class_name": [class_names[label] for label in chosen.tolist()],
        "probability": probability.tolist(),
        **dict(zip(probability_columns(class_names), prediction.probabilities.T.tolist(), strict=True)),
        **{name: getattr(prediction, name).tolist() for name in UNCERTAINTY},
    }


# Files


def table_path(given: str | None, name: str, overwrite: bool = False) -> Path:
    """Path of a table that can be written.

    Args:
        given: file to write; None for predictions.csv, with a number if it exists.
        name: option or argument that gave it, for messages.
        overwrite: replace the file if it exists.

    Raises:
        UserError: its ending is not that of a table, pyarrow is missing, or the given file exists.
    """
    path = Path(given or DEFAULT)
    check_ending(path, name)
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(
                "writing .parquet needs pyarrow: pip install lightning-zoo[parquet], or write .csv"
            ) from error
    return output_path(given, DEFAULT, overwrite)


def check_ending(path: Path, name: str) -> None:
    """Raises a `UserError` unless the path ends in .csv or .parquet."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{name} {path} must end in .csv or .parquet")


@contextmanager
def open_table(path: Path, columns: Columns, overwrite: bool = False) -> Iterator[WriteRows]:
    """Opens a table for writing, row by row (CSV) or in groups of rows (Parquet).

    The file appears when the table is complete; after an error there is none. Its folder is created.

    Args:
        path: file that ends in .csv or .parquet.
        columns: types of the columns by name.
        overwrite: replace the file if it exists.

    Yields:
        The function that writes rows.

    Raises:
        UserError: the folder cannot be created, or the file exists.
    """
    if path.suffix == ".csv":
        # Names of files need not be valid Unicode.
        text = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
        with write_output(path, overwrite, "w", **text) as file:
            yield _csv_rows(file, columns)
    else:
        with write_output(path, overwrite) as file, _parquet_rows(file, columns) as write:
            yield write


def _csv_rows(file: IO[str], columns: Columns) -> WriteRows:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)

    def cells(name: str, values: Mapping[str, Sequence[Any]], count: int) -> Sequence[Any]:
        if name not in values:
            return [None] * count
        # float32 has about seven significant digits.
        return [v if v is None else f"{v:.7g}" for v in values[name]] if columns[name] is float else values[name]

    def write(values: Mapping[str, Sequence[Any]]) -> None:
        count = _count_rows(values)
        writer.writerows(zip(*(cells(name, values, count) for name in columns), strict=True))

    return write


@contextmanager
def _parquet_rows(file: IO[bytes], columns: Columns) -> Iterator[WriteRows]:
    import pyarrow as pa
    from pyarrow import parquet

    types = {int: pa.int64(), float: pa.float32(), str: pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    waiting: list[Any] = []

    def cells(name: str, values: Mapping[str, Sequence[Any]], count: int) -> Any:
        if name not in values:
            return pa.nulls(count, schema.field(name).type)
        given = values[name]
        if columns[name] is str:
            given = [v if v is None else v.encode(errors="backslashreplace").decode() for v in given]
        return pa.array(given, schema.field(name).type)

    def flush() -> None:
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
            waiting.clear()

    def write(values: Mapping[str, Sequence[Any]]) -> None:
        count = _count_rows(values)
        waiting.append(pa.record_batch([cells(name, values, count) for name in columns], schema=schema))
        if sum(map(len, waiting)) * len(columns) >= CELLS_PER_GROUP:
            flush()

    with parquet.ParquetWriter(file, schema) as writer:
        yield write
        flush()


def _count_rows(values: Mapping[str, Sequence[Any]]) -> int:
    return len(next(iter(values.values()), ()))
