"""Predictions and their uncertainty as a table, one row per sample."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from zoo.contracts import ClassNames, ClassPrediction, data_of, lacking, left_out, offers
from zoo.errors import UserError


class PredictionWriter(BasePredictionWriter):
    """Writes predictions to a CSV or Parquet file, in the order of the data.

    Columns: `index` of the sample; `label`, the true class, if the data has one; `class` and `class_name`, the most
    probable class; `probability`, its mean over the ensemble; `entropy`, the predictive entropy in nats; and
    `mutual_information` of class and ensemble member, in nats.

    For any LightningModule whose `predict_step` returns a `zoo.contracts.ClassPrediction`, as the zoo's classifiers do.
    Without `ClassNames` of the data, `class_name` is the class's number.

    Args:
        path: file to write, ending in .csv or .parquet (which needs pyarrow); an existing file is never overwritten.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        super().__init__(write_interval="batch")
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".parquet"):
            raise UserError(f"PredictionWriter's path {path} must end in .csv or .parquet")
        self._rows: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        if self.path.exists():
            raise UserError(f"{self.path} exists already; move it away, or give PredictionWriter another path")
        if self.path.suffix == ".parquet":
            try:
                import pyarrow  # noqa: F401
            except ImportError as error:
                raise UserError(
                    f"writing {self.path} needs pyarrow: pip install lightning-zoo[parquet], or write .csv"
                ) from error

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

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
        probability, chosen = prediction.probabilities.max(1)
        data = data_of(trainer)
        left_out(self, data, {ClassNames: "names of classes"})
        names = data.class_names if offers(data, ClassNames) else None
        start = len(self._rows)
        columns = {
            "index": list(batch_indices) if batch_indices else list(range(start, start + len(chosen))),
            **({"label": batch[1].tolist()} if len(batch) > 1 else {}),
            "class": chosen.tolist(),
            "class_name": [names[c] if names else str(c) for c in chosen.tolist()],
            "probability": probability.tolist(),
            "entropy": prediction.entropy.tolist(),
            "mutual_information": prediction.mutual_information.tolist(),
        }
        self._rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = self._rows
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, rows)
            # By index, which also removes samples that a sampler repeated to give all ranks the same number.
            rows = list({row["index"]: row for part in parts for row in part}.values())
        rows = sorted(rows, key=lambda row: row["index"])
        self._rows = []
        if trainer.is_global_zero and rows:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            (_write_csv if self.path.suffix == ".csv" else _write_parquet)(self.path, rows)
            rank_zero_info(f"{len(rows)} predictions in {self.path}")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    with path.open("xb") as file:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
