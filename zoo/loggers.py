"""Loggers of a run that may be continued: metrics.csv and the Weights & Biases run go on without gaps and doubles."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from zoo.atomic import replacing

COUNT_FILE = "rows_logged.txt"


class _Writer(ExperimentWriter):
    """Lightning's writer of metrics.csv, which goes on with the first rows of a file that is there.

    Args:
        log_dir: the folder of the run, which is this run's alone.
        rows: to go on with; later ones are of steps that are taken anew.
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

    def _check_log_dir_exists(self) -> None:
        """There may be a file already, which stays."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self._rewrite(list(csv.DictReader(file)))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with replacing(Path(self.metrics_file_path), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger for a run's own folder, which counts its rows and can go on after so many of them.

    Args:
        root: folder of all runs.
        name: of this kind of run.
        version: name of the run's folder.
        rows: in the file that are to be gone on with.
    """

    def __init__(self, root: str, name: str, version: str, rows: int = 0) -> None:
        super().__init__(root, name=name, version=version)
        self.rows = rows

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self.rows)
        return cast(ExperimentWriter, self._experiment)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        super().log_metrics(metrics, step)
        self.rows += 1


class RunWandbLogger(WandbLogger):
    """Lightning's WandbLogger, which counts what it logs and can go on after so much of it.

    What a run has logged before it was killed, it logs anew when it goes on from its last checkpoint. Weights & Biases
    takes nothing back, so as much is left out as had been logged since; the count is kept in a file.

    Args:
        folder: of the run.
        rows: that had been logged when the checkpoint was written that the run goes on from.
        **kwargs: of WandbLogger.
    """

    def __init__(self, folder: Path, rows: int = 0, **kwargs: Any) -> None:
        super().__init__(save_dir=str(folder), **kwargs)
        self.rows = rows
        self._count_file = folder / "wandb" / COUNT_FILE
        self._logged = int(self._count_file.read_text()) if self._count_file.is_file() else 0

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        """Numbers, and pictures, texts and tables, which WandbLogger's other methods hand on to this one."""
        self.rows += 1
        if self.rows <= self._logged:
            return
        super().log_metrics(metrics, step)
        self._logged = self.rows
        self._count_file.parent.mkdir(parents=True, exist_ok=True)
        self._count_file.write_text(str(self._logged))


def wandb_id(folder: Path) -> str | None:
    """The id of the Weights & Biases run in a run's folder: the last part of the names of its folders."""
    folders = sorted((folder / "wandb").glob("*run-*-*"))
    return folders[-1].name.rsplit("-", 1)[-1] if folders else None
