"""The report of a run as one HTML page, written when training has ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from zoo.callbacks.run_facts import collect_facts
from zoo.callbacks.run_findings import chosen_weights, remove_findings, write_mistakes, write_nearest
from zoo.callbacks.run_folder import is_sharded, run_folder
from zoo.errors import check_at_least, one_line
from zoo.files import atomic_write
from zoo.report.page import PAGE, write_report
from zoo.report.run import FACTS, FOLDER

#: Adds what the command line knows to the facts of a run.
Describe = Callable[[Trainer, LightningModule], Mapping[str, Any]]


class RunReport(Callback):
    """Writes report.html into the run's folder when training has ended: one file, to be opened offline or mailed.

    It shows what was trained on what, curves, samples over training, and what is worth looking at: for a classifier
    (`zoo.contracts.PredictiveClassifier`) its most confident mistakes among at most 2,000 validation samples and the
    confusion matrix; for a generative image model (`Generative`) samples beside the nearest training pictures, as a
    check on copying. These are computed once, with the weights of the best checkpoint, and left with sizes, times and
    versions in the folder `report`, from which the command `report` makes the page again. Without them: under FSDP.

    For any LightningModule, with Lightning's CSVLogger for the curves. Nothing is done in the training loop. A report
    that fails does not fail the run.

    Args:
        mistakes: number of mistakes that are shown; 0 for none, and no confusion matrix.
        samples: number of samples that are compared with the training pictures; 0 for none.
        program: how the command line is started, for the commands in the report.
        describe: called with Trainer and model for further facts; the command line gives its options and commands.
    """

    def __init__(
        self, mistakes: int = 12, samples: int = 16, program: str = "zoo", describe: Describe | None = None
    ) -> None:
        check_at_least(0, mistakes=mistakes, samples=samples)
        self.mistakes = mistakes
        self.samples = samples
        self.program = program
        self.describe = describe
        self._started, self._start, self._first_step = "", 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._start, self._first_step = time.monotonic(), trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)  # on every rank
        if folder is None or not trainer.is_global_zero or not folder.is_dir():
            return
        with _Failure("the report of the run is not written"):
            for logger in trainer.loggers:
                logger.save()
            self._write_facts(trainer, pl_module, folder)
            if not is_sharded(trainer):
                self._write_findings(trainer, pl_module, folder / FOLDER)
            # Overwritten on purpose: the report is that of the whole run, also if it was resumed.
            write_report([folder], folder / PAGE, self.program, overwrite=True)

    def _write_facts(self, trainer: Trainer, model: LightningModule, folder: Path) -> None:
        seconds = round(time.monotonic() - self._start, 1)
        steps = {"first_step": self._first_step, "last_step": trainer.global_step}
        sessions = [*self._earlier(folder / FACTS), {"started": self._started, "seconds": seconds, **steps}]
        facts = {**collect_facts(trainer, model, folder), "sessions": sessions}
        if self.describe is not None:
            facts |= self.describe(trainer, model)
        (folder / FOLDER).mkdir(exist_ok=True)
        with atomic_write(folder / FACTS, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)

    def _earlier(self, path: Path) -> list[Any]:
        """Times of the run before it was resumed, as far as they are known."""
        if not self._first_step or not path.is_file():
            return []
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["sessions"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _write_findings(self, trainer: Trainer, model: LightningModule, folder: Path) -> None:
        remove_findings(folder)
        missing = "the report of the run has neither mistakes nor nearest pictures"
        with _Failure(missing), chosen_weights(trainer, model) as weights:
            if self.mistakes:
                write_mistakes(trainer, model, folder, self.mistakes, weights)
            if self.samples:
                write_nearest(trainer, model, folder, self.samples, weights)


class _Failure:
    """Turns an error into one line of warning.

    Args:
        what: what is missing then.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):  # a signal, for example, ends the run
            return False
        rank_zero_warn(f"{self.what}: {type(error).__name__}: {one_line(str(error))[:200]}")
        return True
