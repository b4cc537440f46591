"""PredictionWriter: the columns of its table, and that it overwrites nothing."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.unit.training import quiet_trainer
from tests.unit.two_ranks import write_predictions
from zoo import MLPClassifier
from zoo.callbacks import PredictionWriter
from zoo.datamodules import Digits, InMemoryDataModule
from zoo.errors import UserError
from zoo.models.classifier import Classifier

COLUMNS = ["index", "label", "class", "class_name", "probability", "entropy", "mutual_information"]


class Logits(InMemoryDataModule):
    """Eleven test samples that are their own logits, in batches of 4, 4 and 3."""

    input_shape, num_classes, class_names = (3,), 3, ("ant", "bee", "cow, brown")

    def load_split(self, train):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(11, 3, generator=generator), torch.randint(3, (11,), generator=generator)


def predict(callback: PredictionWriter, data=None, model: LightningModule | None = None) -> None:
    trainer = quiet_trainer(callbacks=[callback])
    model = model or Classifier((3,), 3, nn.Identity())
    given = {"dataloaders": data} if isinstance(data, DataLoader) else {"datamodule": data or Logits(eval_batch_size=4)}
    trainer.predict(model, **given)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected() -> list[dict]:
    """The table of `Logits`, computed from the formulas."""
    x, y = Logits().load_split(train=False)
    p = x.double().softmax(1)
    names = Logits.class_names
    return [
        {
            "index": i,
            "label": y[i].item(),
            "class": p[i].argmax().item(),
            "class_name": names[p[i].argmax()],
            "probability": pytest.approx(p[i].max().item(), rel=1e-5),
            "entropy": pytest.approx(-(p[i] * p[i].log()).sum().item(), rel=1e-5),
            "mutual_information": pytest.approx(0, abs=1e-9),
        }
        for i in range(11)
    ]


def read(row: dict[str, str]) -> dict:
    types = dict.fromkeys(COLUMNS, float) | {"index": int, "label": int, "class": int, "class_name": str}
    return {name: types[name](value) for name, value in row.items()}


def test_csv_has_one_row_per_sample_in_the_order_of_the_data(tmp_path):
    path = tmp_path / "new" / "table.csv"
    predict(PredictionWriter(str(path)))
    rows = rows_of(path)
    assert list(rows[0]) == COLUMNS
    assert [read(row) for row in rows] == expected()
    assert len(path.read_text().splitlines()) == 12


def test_parquet_has_the_same_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    predict(PredictionWriter(str(path)))
    table = parquet.read_table(path)
    assert table.column_names == COLUMNS
    assert table.to_pylist() == expected()


def test_a_second_prediction_writes_only_its_own_rows(tmp_path):
    callback = PredictionWriter(str(tmp_path / "a.csv"))
    predict(callback)
    callback.path = tmp_path / "b.csv"
    predict(callback)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_an_existing_file_is_refused_before_prediction_and_not_changed(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("existing")

    class Idle(Classifier):
        def predict_step(self, batch, batch_idx):
            raise AssertionError("a batch was predicted")

    with pytest.raises(UserError, match=r"table\.csv exists already; move it away, or give PredictionWriter another"):
        predict(PredictionWriter(str(path)), model=Idle((3,), 3, nn.Identity()))
    assert path.read_text() == "existing"


def test_unknown_endings_and_parquet_without_pyarrow_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"path table\.xlsx must end in \.csv or \.parquet"):
        PredictionWriter("table.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install lightning-zoo\[parquet\], or write \.csv"):
        predict(PredictionWriter(str(tmp_path / "table.parquet")))


def test_without_labels_there_is_no_label_column(tmp_path):
    x, _ = Logits().load_split(train=False)
    path = tmp_path / "table.csv"
    predict(PredictionWriter(str(path)), DataLoader(TensorDataset(x), batch_size=4))
    rows = rows_of(path)
    assert list(rows[0]) == [name for name in COLUMNS if name != "label"]
    names = [str(row["class"]) for row in expected()]
    assert [row["class_name"] for row in rows] == names, "the class's number if the data names no classes"


def test_data_without_names_of_classes_are_named_in_one_line(tmp_path, caplog):
    class Nameless(Logits):
        class_names = None

    path = tmp_path / "table.csv"
    with caplog.at_level("INFO"):
        predict(PredictionWriter(str(path)), Nameless(eval_batch_size=4))
    line = "PredictionWriter on Nameless leaves out names of classes (no class_names)"
    assert caplog.messages.count(line) == 1, "of three batches"
    assert {row["class_name"] for row in rows_of(path)} <= {"0", "1", "2"}


def test_samples_of_an_iterable_dataset_are_numbered_in_order(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*Logits().load_split(train=False), strict=True))

    path = tmp_path / "table.csv"
    predict(PredictionWriter(str(path)), DataLoader(Stream(), batch_size=4))
    table = [{**row, "class_name": str(row["class"])} for row in expected()]
    assert [read(row) for row in rows_of(path)] == table


def test_a_model_without_probabilities_is_refused(tmp_path):
    class Other(LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch[0]

    with pytest.raises(
        UserError,
        match="predict_step of Other returns no probabilities, entropy, mutual_information",
    ):
        predict(PredictionWriter(str(tmp_path / "table.csv")), model=Other())
    assert not list(tmp_path.iterdir())


def test_training_with_the_callback_writes_nothing(tmp_path):
    callback = PredictionWriter(str(tmp_path / "table.csv"))
    trainer = quiet_trainer(max_steps=1, callbacks=[callback])
    model = MLPClassifier((1, 8, 8), 10, width=4, depth=1)
    trainer.fit(model, datamodule=Digits())
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_ranks_write_the_table_of_one_process(two_ranks, tmp_path):
    write_predictions(tmp_path / "predictions.csv")
    one, two = (rows_of(folder / "predictions.csv") for folder in (tmp_path, two_ranks))
    assert len(one) == 297, "an odd number, so that the ranks have different numbers of samples"
    for first, second in zip(one, two, strict=True):
        assert {k: first[k] for k in COLUMNS[:4]} == {k: second[k] for k in COLUMNS[:4]}
        for name in COLUMNS[4:]:
            assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-4, abs=1e-6)
