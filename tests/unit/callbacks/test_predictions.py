"""The table of predictions: what its columns hold, and what it never overwrites."""

from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.helpers.command import TINY, fails
from zoo import MLPClassifier
from zoo.callbacks import PredictionWriter
from zoo.cli.main import main
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
    warnings.filterwarnings("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet)
    model = model or Classifier(nn.Identity(), (3,), 3)
    given = {"dataloaders": data} if isinstance(data, DataLoader) else {"datamodule": data or Logits(eval_batch_size=4)}
    trainer.predict(model, **given)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected() -> list[dict]:
    """The table of `Logits` by the formulas."""
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


def test_csv_has_a_line_for_each_sample_in_the_order_of_the_data(tmp_path):
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


def test_a_callback_that_predicts_twice_has_two_tables(tmp_path):
    callback = PredictionWriter(str(tmp_path / "a.csv"))
    predict(callback)
    callback.path = tmp_path / "b.csv"
    predict(callback)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_an_existing_file_is_refused_before_anything_is_predicted_and_stays_as_it_is(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("precious")

    class Idle(Classifier):
        def predict_step(self, batch, batch_idx):
            raise AssertionError("nothing is predicted")

    with pytest.raises(UserError, match=r"table\.csv exists already; move it away, or give PredictionWriter another"):
        predict(PredictionWriter(str(path)), model=Idle(nn.Identity(), (3,), 3))
    assert path.read_text() == "precious"


def test_other_endings_are_refused_and_parquet_without_pyarrow(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"path table\.xlsx must end in \.csv or \.parquet"):
        PredictionWriter("table.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"writing \.parquet needs pyarrow: pip install pyarrow, or write \.csv"):
        predict(PredictionWriter(str(tmp_path / "table.parquet")))


def test_samples_without_labels_have_no_column_of_labels(tmp_path):
    x, _ = Logits().load_split(train=False)
    path = tmp_path / "table.csv"
    predict(PredictionWriter(str(path)), DataLoader(TensorDataset(x), batch_size=4))
    rows = rows_of(path)
    assert list(rows[0]) == [name for name in COLUMNS if name != "label"]
    names = [str(row["class"]) for row in expected()]
    assert [row["class_name"] for row in rows] == names, "numbers, where the data names no classes"


def test_a_stream_without_indices_is_numbered_as_it_comes(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*Logits().load_split(train=False), strict=True))

    path = tmp_path / "table.csv"
    predict(PredictionWriter(str(path)), DataLoader(Stream(), batch_size=4))
    table = [{**row, "class_name": str(row["class"])} for row in expected()]
    assert [read(row) for row in rows_of(path)] == table


def test_a_model_that_is_no_classifier_is_refused(tmp_path):
    class Other(LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch[0]

    with pytest.raises(UserError, match="PredictionWriter needs a classifier, and Other is none"):
        predict(PredictionWriter(str(tmp_path / "table.csv")), model=Other())
    assert not list(tmp_path.iterdir())


def test_training_with_the_callback_writes_nothing(tmp_path):
    warnings.filterwarnings("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callback = PredictionWriter(str(tmp_path / "table.csv"))
    trainer = Trainer(accelerator="cpu", max_steps=1, callbacks=[callback], enable_model_summary=False, **quiet)
    model = MLPClassifier((1, 8, 8), 10, width=4, depth=1)
    trainer.fit(model, datamodule=Digits())
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert not list(tmp_path.iterdir())


# By the command line


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Two untrained classifiers of digits."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in range(2):
        torch.manual_seed(seed)
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.strategy.connect(MLPClassifier((1, 8, 8), 10, width=8, depth=1))
        trainer.save_checkpoint(folder / f"{seed}.ckpt")
    return [str(folder / f"{seed}.ckpt") for seed in range(2)]


MODEL = [
    "--config",
    "mlp.yaml",
    "--data=Digits",
    "--model.width=8",
    "--model.depth=1",
    "--model.batch_norm=false",
    TINY[0],
]


def test_predict_writes_a_table_without_being_asked_and_does_not_overwrite_it(
    checkpoints, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["predict", *MODEL, "--ckpt_path", checkpoints[0], "--model.mc_samples=3"]
    main([*command, f"--model.ensemble=[{checkpoints[1]}]"])
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]
    rows, text = rows_of(Path("predictions.csv")), Path("predictions.csv").read_text()
    assert list(rows[0]) == COLUMNS
    _, labels = Digits().load_split(train=False)
    assert [int(row["index"]) for row in rows] == list(range(297))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert all(float(row["mutual_information"]) > 0 for row in rows)
    message = fails(capsys, *command)
    assert message == "predictions.csv exists already; move it away, or give PredictionWriter another path"
    assert Path("predictions.csv").read_text() == text


def test_predict_with_a_writer_of_ones_own_writes_where_it_says(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = ["--trainer.callbacks=PredictionWriter", "--trainer.callbacks.path=mine/table.csv"]
    main(["predict", *MODEL, "--ckpt_path", checkpoints[0], *writer])
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == ["mine/table.csv"]


def test_an_ensemble_that_is_not_there_is_answered_with_one_line(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = fails(capsys, "predict", *MODEL, "--ckpt_path", checkpoints[0], "--model.ensemble=[no.ckpt]")
    assert message == "no.ckpt in ensemble is not a file"
    assert not list(tmp_path.iterdir())


# Two processes

SCRIPT = """
import sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import MLPClassifier
from zoo.callbacks import PredictionWriter
from zoo.datamodules import Digits
warnings.filterwarnings("ignore")
seed_everything(0)
devices = int(sys.argv[1])
model = MLPClassifier((1, 8, 8), 10, width=8, depth=1)
trainer = Trainer(strategy="ddp", devices=devices, accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, callbacks=[PredictionWriter(f"on_{devices}.csv")])
trainer.predict(model, datamodule=Digits(eval_batch_size=40))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(tmp_path):
    (tmp_path / "predict.py").write_text(SCRIPT)
    for devices in (1, 2):
        command = [sys.executable, "predict.py", str(devices)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (rows_of(tmp_path / f"on_{devices}.csv") for devices in (1, 2))
    assert len(one) == 297, "an odd number: a sampler repeats one to give both as many"
    for first, second in zip(one, two, strict=True):
        assert {k: first[k] for k in COLUMNS[:4]} == {k: second[k] for k in COLUMNS[:4]}
        for name in COLUMNS[4:]:
            assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-4, abs=1e-6)
