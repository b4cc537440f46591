"""Loggers of a run that can be resumed: metrics.csv and Weights & Biases continue without gaps or duplicates."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from zoo._lightning import MetricsFileHooks, lazy_experiment
from zoo.files import atomic_write
from zoo.tracking.wandb_process import TolerantWandbLogger

COUNT_FILE = "rows_logged.txt"


class _MetricsWriter(MetricsFileHooks, ExperimentWriter):
    """Lightning's writer of metrics.csv, which continues an existing file after its first rows.

    Args:
        log_dir: folder of the run.
        rows: number of rows to keep; the steps of later rows are repeated.
    """

    def __init__(self, log_dir: str, rows: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.metrics_keys = list(reader.fieldnames or [])
                kept = [row for row, _ in zip(reader, range(rows), strict=False)]
            self._rewrite(kept)

    def rewrite_with_new_header(self) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._rewrite(list(csv.DictReader(file)))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomic_write(Path(self.metrics_file_path), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger, writing directly into the run's folder; it counts its rows and can be resumed.

    Args:
        root: folder of all runs.
        name: name of the run.
        version: name of the run's own folder.
        rows: rows of an existing file to keep.
    """

    def __init__(self, root: str, name: str, version: str, rows: int = 0) -> None:
        super().__init__(root, name=name, version=version)
        self.rows = rows

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        return lazy_experiment(self, lambda: _MetricsWriter(self.log_dir, self.rows))

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        super().log_metrics(metrics, step)
        self.rows += 1


class RunWandbLogger(TolerantWandbLogger):
    """Lightning's WandbLogger, which counts what it logs and can be resumed.

    A resumed run repeats the steps after its last checkpoint and logs them again. Weights & Biases cannot delete rows,
    so as many as had been logged already are skipped; the count is kept in a file.

    Args:
        folder: folder of the run.
        rows: number of rows logged when the checkpoint was written from which the run is resumed.
        **kwargs: further arguments of WandbLogger.
    """

    def __init__(self, folder: Path, rows: int = 0, **kwargs: Any) -> None:
        super().__init__(**{"save_dir": str(folder), **kwargs})
        self.rows = rows
        self._count_file = folder / "wandb" / COUNT_FILE
        self._logged = int(self._count_file.read_text()) if self._count_file.is_file() else 0

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        """Logs numbers, and the images, texts and tables that WandbLogger's other methods pass on to this one."""
        self.rows += 1
        if self.rows <= self._logged:
            return
        super().log_metrics(metrics, step)
        self._logged = self.rows
        self._count_file.parent.mkdir(parents=True, exist_ok=True)
        self._count_file.write_text(str(self._logged))
