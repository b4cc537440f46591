"""The study of a search: its trials in a journal on disk, by Optuna, and the files that are written from them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from PIL import Image

from zoo.cli.search_space import SearchSpace
from zoo.errors import UserError, one_line
from zoo.files import atomic_write
from zoo.plotting.trials import PlottedTrial, plot_trials
from zoo.tracking.run_folders import lock_folder

JOURNAL = "study.journal"
NAME = "tune"  # of the only study in a journal
#: Trials that end before the first is pruned, and validations of a trial before it may be pruned.
UNPRUNED_TRIALS, UNPRUNED_VALIDATIONS = 5, 2
#: What is kept of a trial beside its options and its value.
FACTS = ("steps", "seconds", "folder", "reason")

State = Literal["completed", "pruned", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Study:
    """Trials of one search in one folder. The same search continues there; another one is refused.

    Args:
        folder: folder of the study; created if it does not exist.
        space: options that are searched.
        described: plain nested values that tell searches apart.
        mode: "min" if lower values of the metric are better, "max" if higher values are.
        seed: seed of the sampler.

    Raises:
        UserError: another search has been made in the folder, or another process works there.
    """

    def __init__(
        self, folder: Path, space: SearchSpace, described: dict[str, Any], mode: Literal["min", "max"], seed: int
    ) -> None:
        self.folder, self.space, self.mode = folder, space, mode
        self._made = [made for made in (folder, *folder.parents) if not made.exists()]
        self._lock = _create_and_lock(folder)
        self._journal = folder / JOURNAL
        self._new = not self._journal.exists()
        try:
            self._study = self._open()
            self._check_same(described)
            self._repeat_interrupted()
        except BaseException:
            self.close()
            raise
        # Another seed after each continuation: the same one would draw the first values again.
        self._study.sampler = optuna.samplers.TPESampler(seed=seed + len(self._study.trials))

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.MedianPruner(UNPRUNED_TRIALS, n_warmup_steps=UNPRUNED_VALIDATIONS + 1)
        try:
            storage = JournalStorage(JournalFileBackend(str(self._journal)))
            if self._new:
                direction = StudyDirection.MINIMIZE if self.mode == "min" else StudyDirection.MAXIMIZE
                return optuna.create_study(study_name=NAME, storage=storage, direction=direction, pruner=pruner)
            return optuna.load_study(study_name=NAME, storage=storage, pruner=pruner)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self._journal} is damaged ({one_line(str(error))[:100]}): move it away, or give another --run.name"
            ) from error

    def _check_same(self, described: dict[str, Any]) -> None:
        before = self._study.user_attrs.get("described")
        if before is None:
            self._study.set_user_attr("described", described)
            return
        old, new = _flat(before), _flat(described)
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            key, more = changed[0], f" ({len(changed) - 1} more differ)" if len(changed) > 1 else ""
            raise UserError(
                f"the study in {self.folder} was made with {key} {old.get(key, 'not set')}, and now it is "
                f"{new.get(key, 'not set')}{more}: give the same recipe, options and space to continue it, or another "
                "--run.name to start a new one"
            )

    def _repeat_interrupted(self) -> None:
        """Repeats the options of a trial whose process was ended."""
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    # Trials

    @property
    def ended(self) -> list[FrozenTrial]:
        """Trials that were completed, pruned or failed, without those whose process was ended."""
        return [trial for trial in self._study.trials if trial.state.is_finished() and "steps" in trial.user_attrs]

    @property
    def completed(self) -> list[FrozenTrial]:
        """Completed trials, the best first."""
        trials = self._study.get_trials(states=(TrialState.COMPLETE,))
        return sorted(trials, key=lambda trial: trial.value, reverse=self.mode == "max")  # type: ignore[arg-type, return-value]

    def start_with(self, values: dict[str, Any]) -> None:
        """Makes these values the first trial of a new study."""
        if not self._study.trials:
            self._study.enqueue_trial(values)

    def ask(self) -> Trial:
        """A trial with values of all options."""
        return self._study.ask(self.space.distributions)

    def tell(self, trial: Trial, state: State, value: float | None, facts: dict[str, Any]) -> None:
        """Records the end of a trial.

        Args:
            trial: trial.
            state: how it ended.
            value: best value of the metric; None for a trial that failed.
            facts: values of `FACTS`.
        """
        for name, fact in {**facts, "best": value}.items():
            trial.set_user_attr(name, fact)
        if state == "completed":
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    @staticmethod
    def state_of(trial: FrozenTrial) -> State:
        """How an ended trial has ended."""
        return STATES[trial.state]

    def discard(self) -> None:
        """Removes a new study in which nothing was measured, so that a mistake can be corrected."""
        if self._new:
            self._journal.unlink()
            for made in self._made:
                with suppress(OSError):  # not empty
                    made.rmdir()

    def close(self) -> None:
        """Lets other processes work on the study."""
        if self._lock is not None:
            os.close(self._lock)

    # Files. They show the study so far, and are overwritten on purpose.

    def write_table(self) -> None:
        """Writes trials.csv: completed trials, the best first, then pruned and failed ones."""
        order, sign = list(STATES), 1 if self.mode == "min" else -1
        rows = sorted(self.ended, key=lambda t: (order.index(t.state), sign * (_best(t) or 0), t.number))
        with atomic_write(self.folder / "trials.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "state", "value", *self.space.distributions, *FACTS])
            for trial in rows:
                options = [trial.params[key] for key in self.space.distributions]
                facts = [trial.user_attrs.get(name) for name in FACTS]
                writer.writerow([trial.number, self.state_of(trial), _best(trial), *options, *facts])

    def write_picture(self, metric: str) -> None:
        """Writes trials.png, if a trial has ended."""
        if not self.ended:
            return
        trials = [PlottedTrial(t.number, _best(t), t.state == TrialState.COMPLETE, t.params) for t in self.ended]
        distributions = self.space.distributions.items()
        logarithmic = [key for key, one in distributions if getattr(one, "log", False)]
        choices = {key: one.choices for key, one in distributions if isinstance(one, CategoricalDistribution)}
        picture = plot_trials(trials, metric, self.mode, logarithmic, choices)
        with atomic_write(self.folder / "trials.png") as file:
            Image.fromarray(picture).save(file, format="png")

    def write_best(self, config: Mapping[str, Any], title: str) -> None:
        """Writes best.yaml.

        Args:
            config: part of a configuration that sets the best options.
            title: comment in the first line.
        """
        with atomic_write(self.folder / "best.yaml", "w", encoding="utf-8") as file:
            file.write(f"# {title}\n{yaml.safe_dump(dict(config), sort_keys=False)}")


def _create_and_lock(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder of the study cannot be created in {folder}: {error.strerror}; choose another --run.root"
        ) from error
    try:
        return lock_folder(folder)
    except OSError as error:
        raise UserError(
            f"the study in {folder} is still in progress; wait for it, or give another --run.name"
        ) from error


def _best(trial: FrozenTrial) -> float | None:
    return trial.user_attrs.get("best")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys joined by dots, without `init_args`."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        flat.update(_flat(value, name))
    return flat
