"""A logger of somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class FileLogger(Logger):
    """Writes step and names of metrics to a text file, on every rank, as the plainest logger does."""

    name, version = "lines", 7

    def __init__(self, save_dir: str = "everywhere", title: str = "log") -> None:
        super().__init__()
        self.file = Path(save_dir) / f"{title}.txt"
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.file.open("a") as file:
            file.write(f"{step} {' '.join(metrics)}\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass
