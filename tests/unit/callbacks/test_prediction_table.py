"""Tables: names of columns, CSV and Parquet of the same rows, and that an error leaves no file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from zoo.callbacks import prediction_table
from zoo.callbacks.prediction_table import open_table, probability_columns
from zoo.errors import UserError

COLUMNS = {"path": str, "class": int, "p(a)": float, "error": str}
#: What is written, in two pieces, and what is read.
PIECES = [
    {"path": ["b.png", 'x,"\udcff.png'], "class": [1, None], "p(a)": [0.25, None], "error": [None, "two\nlines"]},
    {"path": ["ü.png"], "p(a)": [1e-9]},
]
ROWS = [
    {"path": "b.png", "class": 1, "p(a)": 0.25, "error": None},
    {"path": 'x,"\\udcff.png', "class": None, "p(a)": None, "error": "two\nlines"},
    {"path": "ü.png", "class": None, "p(a)": pytest.approx(1e-9), "error": None},
]


def write(path: Path) -> None:
    with open_table(path, COLUMNS) as write_rows:
        for piece in PIECES:
            write_rows(piece)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["cat", "dog, big"], ["p(cat)", "p(dog, big)"]),
        (["cat", "Cat "], ["p(0: cat)", "p(1: Cat )"]),
        (["cat", ""], ["p(0: cat)", "p(1: )"]),
        (["x", "x", "1: x"], ["p(0: x)", "p(1: x)", "p(2: 1: x)"]),
    ],
)
def test_columns_of_probabilities_are_different_whatever_the_classes_are_called(names, columns):
    assert probability_columns(names) == columns


def test_csv_has_empty_cells_for_what_is_missing(tmp_path):
    write(tmp_path / "new" / "table.csv")
    with (tmp_path / "new" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    types = {"path": str, "class": int, "p(a)": float, "error": str}
    assert [{name: types[name](value) if value else None for name, value in row.items()} for row in rows] == ROWS


@pytest.mark.parametrize(("cells", "groups"), [(2**22, 1), (8, 2)])
def test_parquet_has_the_same_rows_in_groups_of_bounded_size(tmp_path, monkeypatch, cells, groups):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(prediction_table, "CELLS_PER_GROUP", cells)
    write(tmp_path / "table.parquet")
    assert parquet.ParquetFile(tmp_path / "table.parquet").num_row_groups == groups
    assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == ROWS


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_an_interruption_leaves_no_file(tmp_path, name):
    def interrupted() -> None:
        with open_table(tmp_path / name, COLUMNS) as write_rows:
            write_rows(PIECES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be created as a folder"), open_table(tmp_path / "file/a.csv", {}):
        pass
