"""Loggers of a run that can be resumed: metrics.csv and Weights & Biases continue without gaps or duplicates."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from zoo._lightning import MetricsFileHooks, lazy_experiment, wandb_core
from zoo.files import atomic_write, unused_path
from zoo.tracking.wandb_file import ROW, WandbFile, rows_on_disk
from zoo.tracking.wandb_process import TolerantWandbLogger, warn_on_failure

FLUSH_INTERVAL, FLUSH_TIMEOUT = 0.1, 5.0  # seconds


class _MetricsWriter(MetricsFileHooks, ExperimentWriter):
    """Lightning's writer of metrics.csv, which continues an existing file after its first rows.

    Args:
        log_dir: folder of the run.
        rows: number of rows to keep; the steps of later rows are repeated.
    """

    def __init__(self, log_dir: str, rows: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        kept: list[dict[str, str]] = []
        if path.is_file():
            self.metrics_keys, kept, damage = _first_rows(path, rows)
            if damage:
                copy = unused_path(path)
                path.replace(copy)
                rank_zero_warn(f"{path} is damaged in line {damage}; it is kept as {copy.name}")
            self._rewrite(kept)
        if len(kept) < rows:
            rank_zero_warn(
                f"{path} has {len(kept)} of the {rows} rows that were logged before the checkpoint; the others stay "
                "missing"
            )

    def rewrite_with_new_header(self) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._rewrite(list(csv.DictReader(file)))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomic_write(Path(self.metrics_file_path), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def _first_rows(path: Path, number: int) -> tuple[list[str], list[dict[str, str]], int]:
    """Names of the columns, the first rows that are not damaged, and the line of the first that is, 0 for none."""
    header: list[str] = []
    rows: list[dict[str, str]] = []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        try:
            header = _undamaged(next(reader, []))
            while len(rows) < number and (row := next(reader, None)) is not None:
                rows.append(dict(zip(header, _undamaged(row), strict=True)))
        except (csv.Error, ValueError):
            return header, rows, reader.line_num
    return header, rows, 0


def _undamaged(row: list[str]) -> list[str]:
    "".join(row).encode()  # raises an error if the bytes of the file were not UTF-8
    return row


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

    def flush(self) -> None:
        """Writes the rows to the file."""
        self.save()


class RunWandbLogger(TolerantWandbLogger):
    """Lightning's WandbLogger, which numbers what it logs and can be resumed.

    A resumed run repeats the steps after its last checkpoint and logs them again. Weights & Biases cannot delete rows,
    so those that are on the disk already are skipped.

    Args:
        folder: folder of the run.
        rows: number of rows logged when the checkpoint was written from which the run is resumed.
        **kwargs: further arguments of WandbLogger.
    """

    def __init__(self, folder: Path, rows: int = 0, **kwargs: Any) -> None:
        settings, self._flushes = _flushing_often(kwargs.get("settings"))
        super().__init__(**{"save_dir": str(folder), **kwargs, "settings": settings})
        self.rows = rows
        self._resumed_id = kwargs.get("id")
        self._written: int | None = None
        self._file: WandbFile | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        """Logs numbers, and the images, texts and tables that WandbLogger's other methods pass on to this one."""
        if self._written is None:
            self._written = 0
            with warn_on_failure():
                self._written = self._start()
        self.rows += 1
        if self.rows > self._written:
            super().log_metrics({**metrics, ROW: self.rows}, step)

    def _start(self) -> int:
        """Number of rows that are on the disk already."""
        self.experiment.define_metric(ROW, hidden=True)
        if self._resumed_id is None:
            return 0
        written = rows_on_disk(Path(self.save_dir or ".") / "wandb", self._resumed_id)
        if written < self.rows:
            rank_zero_warn(
                f"Weights & Biases has {written} of the {self.rows} rows that were logged before the checkpoint; the "
                "others stay missing there"
            )
        return written

    def flush(self) -> None:
        """Waits until the rows are on the disk, some seconds at most; not for a helper process that has ended."""
        if self._written is None or self.rows <= self._written or not self._flushes:
            return
        helper = wandb_core()
        if helper is not None and helper.poll() is not None:
            return
        if self._file is None:
            path = next(Path(self.experiment.dir).parent.glob("*.wandb"), None)
            if path is None:
                return
            self._file = WandbFile(path)
        deadline = time.monotonic() + FLUSH_TIMEOUT
        while self._file.last_row() < self.rows and time.monotonic() < deadline:
            time.sleep(FLUSH_INTERVAL / 10)


def _flushing_often(settings: Any) -> tuple[Any, bool]:
    """Settings by which Weights & Biases writes rows soon, and whether this version of it has such a setting."""
    import wandb

    settings = wandb.Settings(**settings) if isinstance(settings, dict) else settings or wandb.Settings()
    name = "x_transaction_log_flush_interval"
    if flushes := hasattr(settings, name):
        setattr(settings, name, FLUSH_INTERVAL)
    return settings, flushes
