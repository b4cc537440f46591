"""Precision, recall and F1 of each class, and the confusion matrix, after a test."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.callbacks.run_folder import run_folder
from zoo.contracts import ClassNames, ClassPrediction, ImageLogger, TextLogger, data_of, lacking, left_out, offers
from zoo.errors import UserError
from zoo.files import atomic_write, unused_path
from zoo.plotting.confusion import plot_confusion
from zoo.plotting.images import save_png

MOST_ROWS = 16  # classes in the printed table


class ClassScores(NamedTuple):
    """Scores of each class, float64 (C,); 0 where a quotient is 0 / 0, as in torchmetrics.

    Attributes:
        precision: share of the samples predicted as the class that are of it.
        recall: share of the samples of the class that are predicted as it.
        f1: harmonic mean of the two.
        support: number of samples of the class, int64 (C,).
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    @classmethod
    def of(cls, confusion: Tensor) -> ClassScores:
        """Scores of a confusion matrix (C, C) whose rows are true classes and whose columns are predicted ones."""
        hits, predicted, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        quotients = (hits / predicted, hits / support, 2 * hits / (predicted + support))
        precision, recall, f1 = (quotient.double().nan_to_num(0) for quotient in quotients)
        return cls(precision, recall, f1, support)

    def macro(self, confusion: Tensor) -> dict[str, float]:
        """Means over the classes that occur in the confusion matrix, as labels or as predictions."""
        occur = confusion.sum(0) + confusion.sum(1) > 0
        return {name: getattr(self, name)[occur].mean().item() for name in ("precision", "recall", "f1")}


class ClassReport(Callback):
    """Reports precision, recall and F1 of each class and the confusion matrix at the end of a test.

    It logs the macro averages, the means over the classes, as `test/precision`, `test/recall` and `test/f1`; prints a
    table, of the classes with the lowest F1 if there are many; and writes `classes.csv`, `confusion.csv` and
    `confusion.png` (rows are true classes, columns predicted ones), which loggers of text and images get, too. Samples
    of all test dataloaders are counted together.

    For any LightningModule whose `test_step` returns a `zoo.contracts.ClassPrediction`, on batches `(x, y)`, as the
    zoo's classifiers do. Without `ClassNames` of the data, a class is named by its number.

    Args:
        folder: folder of the files; by default `test` in the folder of the checkpoint's run, or of the Trainer's run if
            there is no checkpoint, or in the working folder if there is neither. If it exists, its name gets a number.

    Raises:
        UserError: the model's `test_step` returns something else, or the folder cannot be created.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._place: Path | None = None
        self._confusion: MulticlassConfusionMatrix | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._confusion = None
        if self.folder is not None:
            _check_folder(Path(self.folder))
        own = run_folder(trainer)  # on every rank
        place = Path(self.folder) if self.folder is not None else _default_folder(trainer.ckpt_path, own)
        self._place = None if trainer.fast_dev_run else place  # type: ignore[attr-defined]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if missing := lacking(outputs, ClassPrediction):
            raise UserError(
                f"ClassReport needs a classifier; the test_step of {type(pl_module).__name__} returns no "
                f"{', '.join(missing)}"
            )
        if self._confusion is None:
            classes = outputs.probabilities.shape[1]
            self._confusion = MulticlassConfusionMatrix(classes).to(pl_module.device)
        self._confusion.update(outputs.probabilities.argmax(1), batch[1])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._confusion is None:
            return
        confusion = self._confusion.compute().cpu()  # of all ranks
        scores = ClassScores.of(confusion)
        macro = scores.macro(confusion)
        pl_module.log_dict({f"test/{name}": value for name, value in macro.items()}, sync_dist=True)
        names = self._class_names(trainer, len(confusion))
        if trainer.is_global_zero:
            if trainer.test_loop.verbose:
                Console().print(score_table(scores, macro, names))
            self._write(trainer, confusion, scores, names)

    def _class_names(self, trainer: Trainer, count: int) -> list[str]:
        data = data_of(trainer)
        left_out(self, data, {ClassNames: "names of classes"})
        return [str(name) for name in data.class_names] if offers(data, ClassNames) else list(map(str, range(count)))

    def _write(self, trainer: Trainer, confusion: Tensor, scores: ClassScores, names: Sequence[str]) -> None:
        head = ["class", "class_name", *ClassScores._fields]
        rows = [[number, names[number], *values] for number, values in enumerate(zip(*_plain(scores), strict=True))]
        samples = int(confusion.sum())
        picture = plot_confusion(confusion, names, f"{samples:,} test samples, {_percent(confusion)} correct")
        if self._place is not None:
            folder = unused_path(self._place)
            folder.mkdir(parents=True)
            _write_csv(folder / "classes.csv", [head, *rows])
            matrix = [[name, *row] for name, row in zip(names, confusion.tolist(), strict=True)]
            _write_csv(folder / "confusion.csv", [["true class / predicted class", *names], *matrix])
            save_png(folder / "confusion.png", picture)
            rank_zero_info(f"Scores of each class and the confusion matrix: {folder}")
        for logger in trainer.loggers:
            if offers(logger, TextLogger):
                logger.log_text("test/classes", columns=head, data=rows)
            if offers(logger, ImageLogger):
                logger.log_image("test/confusion", [picture])


def _default_folder(ckpt_path: Any, own: Path | None) -> Path:
    """Folder `test` of the checkpoint's run, else of the Trainer's run, else in the working folder."""
    checkpoint = Path(ckpt_path or "")
    inside = [checkpoint.parent.parent] if checkpoint.is_file() and checkpoint.parent.name == "checkpoints" else []
    runs = [*inside, *([own] if own is not None else [])]
    # A run of someone else can be read, and not written to.
    return next((run for run in runs if os.access(run, os.W_OK)), Path()) / "test"


def _check_folder(folder: Path) -> None:
    """Raises a `UserError` if a folder cannot be created."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"ClassReport's folder {folder} cannot be created in {above}; choose another one")


def score_table(scores: ClassScores, macro: dict[str, float], names: Sequence[str]) -> Table:
    """A table of the classes, or of those with the lowest F1 if there are many, and of the macro averages."""
    count = len(names)
    shown = scores.f1.argsort(stable=True)[:MOST_ROWS].tolist() if count > MOST_ROWS else range(count)
    table = Table(title=f"The {MOST_ROWS} of {count} classes with the lowest F1" if count > MOST_ROWS else None)
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    for name in ClassScores._fields:
        table.add_column(name, justify="right", no_wrap=True)
    for number in shown:
        values = [f"{getattr(scores, name)[number]:.3f}" for name in macro]
        table.add_row(Text(names[number]), *values, f"{scores.support[number]:,}")
    table.add_section()
    table.add_row("macro average", *(f"{value:.3f}" for value in macro.values()), f"{scores.support.sum():,}")
    return table


def _plain(scores: ClassScores) -> list[list[float]]:
    """The columns of the table, with seven decimals at most."""
    return [[round(value, 7) for value in column.tolist()] for column in scores]


def _percent(confusion: Tensor) -> str:
    return f"{100 * confusion.diagonal().sum() / confusion.sum().clamp_min(1):.2f}%"


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with atomic_write(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
