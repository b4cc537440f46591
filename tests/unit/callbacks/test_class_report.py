"""ClassReport: scores and confusion matrix beside torchmetrics' and known answers, its files, and where they lie."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from tests.unit.training import MemoryLogger, quiet_trainer
from tests.unit.two_ranks import report_classes
from zoo.callbacks import ClassReport
from zoo.callbacks.class_report import MOST_ROWS, ClassScores
from zoo.datamodules import InMemoryDataModule
from zoo.errors import UserError
from zoo.models.classifier import Classifier

NAMES = ("ant", "bee [red]", "cow, brown", "dodo")
SCORES = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}


class Logits(InMemoryDataModule):
    """Samples are their own logits; no label and no prediction is the last class, the dodo."""

    input_shape, num_classes, class_names = (4,), 4, NAMES

    def load_split(self, train):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(103, 4, generator=generator)
        logits[:, 3] = -10
        return logits, torch.randint(3, (103,), generator=generator)


@pytest.fixture(autouse=True)
def cheap_figure(monkeypatch):
    """A picture of one pixel; the figure has tests of its own."""
    monkeypatch.setattr("zoo.callbacks.class_report.plot_confusion", lambda *_: np.zeros((1, 1, 3), dtype=np.uint8))


def run_test(callback: ClassReport, data=None, model=None, trainer=None, verbose=False, **options) -> dict[str, float]:
    trainer = trainer or quiet_trainer(callbacks=[callback])
    given = {"datamodule": Logits(eval_batch_size=40)} if data is None else {"dataloaders": data}
    (metrics,) = trainer.test(model or Classifier((4,), 4, nn.Identity()), **given, verbose=verbose, **options)
    return metrics


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_scores_and_macro_averages_are_those_of_torchmetrics():
    x, y = Logits().load_split(train=False)
    confusion = torch.zeros(4, 4, dtype=torch.long)
    for label, predicted in zip(y, x.argmax(1), strict=True):
        confusion[label, predicted] += 1
    scores = ClassScores.of(confusion)
    for name, score in SCORES.items():
        each = score(x, y, 4, average="none")
        torch.testing.assert_close(getattr(scores, name), each.double(), rtol=1e-6, atol=0)
        macro = score(x, y, 4, average="macro").item()
        assert scores.macro(confusion)[name] == pytest.approx(macro, rel=1e-6), "without the class that does not occur"
    assert scores.support.tolist() == y.bincount(minlength=4).tolist()


def test_a_class_that_is_only_predicted_or_only_labelled_counts_in_the_macro_average():
    p = torch.eye(4)[[0, 0, 1, 1]]
    y = torch.tensor([0, 2, 0, 0])  # 1 is never a label, 2 never predicted, 3 neither
    confusion = torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    for name, score in SCORES.items():
        assert ClassScores.of(confusion).macro(confusion)[name] == pytest.approx(score(p, y, 4, average="macro").item())


def test_tables_picture_and_logged_values_are_of_the_whole_test_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = run_test(ClassReport())
    x, y = Logits().load_split(train=False)
    folder = tmp_path / "test"
    head, *rows = rows_of(folder / "classes.csv")
    assert head == ["class", "class_name", "precision", "recall", "f1", "support"]
    assert [row[1] for row in rows] == list(NAMES)
    for index, name in enumerate(SCORES, start=2):
        each = SCORES[name](x, y, 4, average="none")
        assert [float(row[index]) for row in rows] == pytest.approx(each.tolist(), abs=1e-6)
        assert metrics[f"test/{name}"] == pytest.approx(SCORES[name](x, y, 4, average="macro").item())
    head, *matrix = rows_of(folder / "confusion.csv")
    assert head[1:] == [row[0] for row in matrix] == list(NAMES)
    counts = torch.tensor([[int(count) for count in row[1:]] for row in matrix])
    label, predicted = 0, 2
    assert counts[label, predicted] == ((y == label) & (x.argmax(1) == predicted)).sum(), "rows are true classes"
    assert counts.sum() == 103
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_test_has_a_folder_of_its_own(tmp_path):
    callback = ClassReport(str(tmp_path / "new" / "report"))
    trainer = quiet_trainer(callbacks=[callback])
    for _ in range(2):
        run_test(callback, trainer=trainer)
    first, second = tmp_path / "new" / "report", tmp_path / "new" / "report-1"
    assert (first / "confusion.csv").read_text() == (second / "confusion.csv").read_text()


@pytest.mark.parametrize("inside", [True, False])
def test_the_files_lie_in_the_run_of_the_checkpoint_or_in_the_working_folder(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("runs/mlp/version_3/checkpoints" if inside else "downloads") / "best.ckpt"
    model, callback = Classifier((4,), 4, nn.Linear(4, 4)), ClassReport()
    trainer = quiet_trainer(callbacks=[callback])
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    run_test(callback, model=model, trainer=trainer, ckpt_path=str(path), weights_only=True)
    folder = tmp_path / "runs/mlp/version_3/test" if inside else tmp_path / "test"
    assert {file.name for file in folder.iterdir()} == {"classes.csv", "confusion.csv", "confusion.png"}


def test_the_files_lie_in_the_folder_of_the_trainer_without_a_checkpoint(tmp_path):
    class Logger(MemoryLogger):
        save_dir = str(tmp_path)

    callback = ClassReport()
    run_test(callback, trainer=quiet_trainer(callbacks=[callback], logger=Logger()))
    assert (tmp_path / "test" / "classes.csv").is_file()


def test_loggers_of_images_and_texts_get_picture_and_table(tmp_path):
    seen = {}

    class Logger(MemoryLogger):
        def log_image(self, key, images, step=None):
            seen[key] = images

        def log_text(self, key, columns, data, step=None):
            seen[key] = [columns, *data]

    callback = ClassReport(str(tmp_path / "report"))
    run_test(callback, trainer=quiet_trainer(callbacks=[callback], logger=Logger()))
    assert seen["test/confusion"][0].shape[2] == 3
    assert [list(map(str, row)) for row in seen["test/classes"]] == rows_of(tmp_path / "report" / "classes.csv")


def test_the_printed_table_has_all_of_few_classes(tmp_path, capsys):
    run_test(ClassReport(str(tmp_path / "report")), verbose=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if any(name in line for name in NAMES)]
    assert len(lines) == 4
    assert "0.000" in lines[3], "the class that does not occur"


def test_the_printed_table_has_the_worst_of_many_classes(tmp_path, capsys):
    classes = 40
    y = torch.arange(classes).repeat_interleave(50)
    wrong = torch.arange(50).repeat(classes) < y  # class k has k of its 50 samples mistaken for class 0
    x = 5 * torch.eye(classes)[torch.where(wrong, 0, y)]
    model = Classifier((classes,), classes, nn.Identity())
    run_test(ClassReport(str(tmp_path / "report")), DataLoader(TensorDataset(x, y), 100), model, verbose=True)
    out = capsys.readouterr().out
    assert f"The {MOST_ROWS} of 40 classes with the lowest F1" in out
    shown = [line.split("│")[1].strip() for line in out.splitlines() if line.count("│") == 6]
    assert shown == ["0", *map(str, range(39, 39 - MOST_ROWS + 1, -1)), "macro average"]


def test_a_fast_dev_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = ClassReport()
    metrics = run_test(callback, trainer=quiet_trainer(callbacks=[callback], fast_dev_run=True))
    assert "test/f1" in metrics and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"ClassReport's folder .*/file/report cannot be created in .*/file; choose"):
        run_test(ClassReport(str(tmp_path / "file" / "report")), model=nothing_computed())


def nothing_computed() -> Classifier:
    class Idle(Classifier):
        def test_step(self, batch, batch_idx):
            raise AssertionError("a batch was tested")

    return Idle((4,), 4, nn.Identity())


def test_a_model_without_probabilities_is_refused(tmp_path):
    class Other(LightningModule):
        def test_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return batch[0].mean()

    with pytest.raises(UserError, match="test_step of Other returns no probabilities, entropy, mutual_information"):
        run_test(ClassReport(str(tmp_path / "report")), model=Other())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_ranks_report_what_one_process_reports(two_ranks, tmp_path):
    """Also the temperature, which is fitted on 101 validation samples: 51 of one rank, 50 of the other."""
    report_classes(tmp_path)
    one, two = (folder / "report" for folder in (tmp_path, two_ranks))
    assert rows_of(two / "confusion.csv") == rows_of(one / "confusion.csv")
    assert (two / "classes.csv").read_text() == (one / "classes.csv").read_text()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert second == pytest.approx(first, rel=1e-3)
    assert first["T"] != 1
