"""Predictions and their uncertainty as a table, one row per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.callbacks.prediction_table import (
    WriteRows,
    check_ending,
    open_table,
    prediction_columns,
    prediction_values,
    table_path,
)
from zoo.contracts import ClassNames, ClassPrediction, SamplePaths, data_of, lacking, left_out, offers
from zoo.errors import UserError

Values = dict[str, list[Any]]


class PredictionWriter(BasePredictionWriter):
    """Writes predictions to a CSV or Parquet file, in the order of the data.

    Columns: `index` of the sample; `path` of its file, if the data tells it; `label`, the true class, if the data has
    one; `class` and `class_name`, the most probable class; `probability`, its mean over the ensemble; the mean
    probability of each class, such as `p(cat)`, see `prediction_table.probability_columns`; `entropy`, the predictive
    entropy in nats; and `mutual_information` of class and ensemble member, in nats.

    For any LightningModule whose `predict_step` returns a `zoo.contracts.ClassPrediction`, as the zoo's classifiers do.
    Without `ClassNames` of the data, `class_name` is the class's number; without `SamplePaths`, there is no `path`.

    A single process writes rows while it predicts; several collect them, and rank 0 writes them at the end. The file
    appears when it is complete.

    Args:
        path: file to write, ending in .csv or .parquet (which needs pyarrow); by default predictions.csv, with a number
            if it exists.
        overwrite: replace the file if it exists.
    """

    def __init__(self, path: str | None = None, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        if path is not None:
            check_ending(Path(path), "the file of predictions")
        self.path = path
        self.overwrite = overwrite
        self._clear()

    def _clear(self) -> None:
        self._open = ExitStack()  # holds the table
        self._write: WriteRows | None = None
        self._names: Sequence[str] = ()
        self._paths: Sequence[Path] = ()
        self._count = 0
        self._collected: list[Values] = []  # of this rank, if there are several

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            self._table = table_path(self.path, "the file of predictions", self.overwrite)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()
        data = data_of(trainer)
        self._paths = data.paths(data.predict_split) if offers(data, SamplePaths) else ()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if missing := lacking(prediction, ClassPrediction):
            raise UserError(
                f"PredictionWriter needs a classifier; the predict_step of {type(pl_module).__name__} returns no "
                f"{', '.join(missing)}"
            )
        if not self._names:
            self._names = self._class_names(data_of(trainer), prediction.probabilities.shape[1])
        count = len(prediction.probabilities)
        indices = list(batch_indices) if batch_indices else list(range(self._count, self._count + count))
        self._count += count
        values: Values = {
            "index": indices,
            **({"path": [str(self._paths[i]) for i in indices]} if self._paths else {}),
            **_labels(batch),
            **prediction_values(prediction, self._names),
        }
        if trainer.world_size > 1:
            self._collected.append(values)
        else:
            self._append(values)

    def _class_names(self, data: Any, num_classes: int) -> Sequence[str]:
        left_out(self, data, {ClassNames: "names of classes"})
        return data.class_names if offers(data, ClassNames) else list(map(str, range(num_classes)))

    def _append(self, values: Values) -> None:
        if self._write is None:
            types = {"index": int, "path": str, "label": int, **prediction_columns(self._names)}
            self._write = self._open.enter_context(
                open_table(self._table, {name: types[name] for name in values}, self.overwrite)
            )
        self._write(values)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._collected)
            rows = _in_order([values for part in parts for values in part])
            self._count = len(rows.get("index", ()))
            if trainer.is_global_zero and rows:
                self._append(rows)
        self._open.close()
        if self._count:
            rank_zero_info(f"{self._count:,} predictions in {self._table}")
        self._clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.__exit__(type(exception), exception, exception.__traceback__)  # leaves no file


def _labels(batch: Any) -> Values:
    """The true classes of a batch `(x, y)`, if it has them."""
    y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    return {"label": y.tolist()} if isinstance(y, Tensor) and y.ndim == 1 else {}


def _in_order(parts: Sequence[Mapping[str, list[Any]]]) -> Values:
    """The rows of all parts by index, each once: a sampler may repeat some to give all ranks the same number."""
    joined = {name: [value for part in parts for value in part[name]] for name in (parts[0] if parts else ())}
    position = {index: i for i, index in enumerate(joined.get("index", ()))}
    order = [position[index] for index in sorted(position)]
    return {name: [values[i] for i in order] for name, values in joined.items()}
