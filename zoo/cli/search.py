"""A search for options: trials as runs of `fit` in this process, and the study that they belong to."""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from optuna.trial import Trial

from zoo.callbacks.objective import Objective
from zoo.cli.fit import ZooCLI, resolve_arguments, run_trainer
from zoo.cli.messages import as_user_error
from zoo.cli.program import program
from zoo.cli.search_space import SearchSpace, excerpt, option_names_of, read_space
from zoo.cli.study import Study
from zoo.errors import NonFiniteError, UserError, one_line
from zoo.tracking.run_folders import RunFolders
from zoo.tracking.wandb_process import finish_run

#: Errors that fail one trial, and not the search.
ERRORS_OF_TRIALS = (NonFiniteError, UserError, torch.OutOfMemoryError)
#: Sections of the configuration that a study may change between two calls.
NOT_COMPARED = ("run", "wandb", "report")

Mode = Literal["min", "max"]


class DryRun(ZooCLI):
    """Builds data, model and Trainer of a run, and does not train; the run has no folder."""

    def loggers_and_folder(self, config: Any) -> dict[str, Any]:
        self.save_config_callback = None
        return {"logger": False}

    def fit(self, **kwargs: Any) -> None:
        pass


class TrialRun(ZooCLI):
    """A run of a trial: with its objective, and without the lines that a single run prints.

    Args:
        recipe: name of the run if the user gives none.
        folders: creates the run's folder.
        objective: callback that keeps the best value and may end the run.
    """

    def __init__(self, recipe: str, folders: RunFolders, objective: Objective) -> None:
        self.objective = objective
        super().__init__(recipe, folders)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.config_init[self.subcommand].trainer.enable_model_summary = False
        self.config_init[self.subcommand].report = False  # `report` makes it of the trials that are worth it
        trainer = super().instantiate_trainer(**kwargs)
        # First, so that a metric that does not exist ends the run before there is a checkpoint.
        trainer.callbacks.insert(0, self.objective)  # type: ignore[attr-defined]
        return trainer

    def summarize(self) -> None:
        pass


class Search:
    """A search among the options of a recipe. What can be checked without training is checked when it is created.

    Args:
        words: options of `fit`.
        space: search space: a file, or the name of one of the package.
        metric: validation metric; None for the one that the recipe's checkpoint callback monitors.
        mode: "min" or "max"; None for that of the checkpoint callback.
        seeds: runs of each trial.
        pruning: whether unpromising trials are ended early.

    Raises:
        UserError: the recipe, an option, the space or a value in it is not possible.
    """

    def __init__(
        self, words: list[str], space: str, metric: str | None, mode: Mode | None, seeds: int, pruning: bool
    ) -> None:
        self.words, self.seeds, self.pruning = words, seeds, pruning
        self.space: SearchSpace = read_space(space)
        self.options = [name for key in self.space.distributions for name in option_names_of(key)]
        with _quiet():
            self.dry = run_trainer(["fit", *words], DryRun)
        check_trainer(self.dry.trainer)
        self.metric, self.mode = metric_and_mode(self.dry.trainer, metric, mode)
        self._check_space()
        self.config = self._plain(self.dry.config)
        self.own_values = self.space.values_of(self.config)
        run = self.config["run"]
        self.name: str = run["name"] or f"{self.dry.recipe}_tune"
        self.folder = Path(run["root"]) / self.name

    def _parse(self, values: Mapping[str, Any]) -> Any:
        """The parser's configuration of a run with these values of the space."""
        args, _ = resolve_arguments(["fit", *self.words, *self.space.words(values)])
        return self.dry.parser.parse_args(args)

    def _plain(self, parsed: Any) -> dict[str, Any]:
        return yaml.safe_load(self.dry.parser.dump(parsed, skip_unset=False))["fit"]

    def _check_space(self) -> None:
        """Raises a `UserError` for an option that the recipe lacks, or a value that the option cannot have."""
        for corner in self.space.corners():
            if self._refusal(corner) is None:
                continue
            for key, value in corner.items():  # each alone: not all values go together
                if mistake := self._refusal({key: value}):
                    raise UserError(f"{self.space.path}: {mistake}") from mistake

    def _refusal(self, values: Mapping[str, Any]) -> UserError | None:
        """Why data and model cannot be built with these values; None if they can."""
        try:
            parsed = self._parse(values)
            excerpt(self._plain(parsed), [name for key in values for name in option_names_of(key)])
            self.dry.parser.instantiate_classes(parsed)
        except Exception as error:
            mistake = as_user_error(error)
            if mistake is None:
                raise
            return mistake
        return None

    # Running

    def run(self, trials: int) -> None:
        """Runs trials until the study has as many, and writes its table, its picture and the best options.

        Raises:
            UserError: no trial was completed, or the study in the folder is of another search.
        """
        described = {name: part for name, part in self.config.items() if name not in NOT_COMPARED}
        described |= {"search": self.space.described(), "metric": self.metric, "mode": self.mode, "seeds": self.seeds}
        study = Study(self.folder, self.space, described, self.mode, self._seed(0))
        try:
            if self.own_values is not None:
                study.start_with(self.own_values)
            else:
                print("The recipe's own options are not in the search space, so no trial has them")
            while len(study.ended) < trials:
                self._run_trial(study)
            study.write_picture(self.metric)
            self._report(study)
        except (KeyboardInterrupt, SystemExit) as stop:
            study.write_picture(self.metric)
            print(f"Stopped after {len(study.ended)} trials; the same command continues the study in {self.folder}")
            raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from stop
        finally:
            study.close()

    def _run_trial(self, study: Study) -> None:
        trial, start, runs = study.ask(), time.monotonic(), list[Objective]()
        state: Literal["completed", "pruned", "failed"] = "completed"
        reason, value = "", None
        try:
            while len(runs) < self.seeds and state == "completed":
                prune = partial(_prune, trial) if self.pruning and not runs else None
                runs.append(Objective(self.metric, self.mode, prune))
                self._fit(trial.params, self._seed(len(runs) - 1), runs[-1])
                state = "pruned" if runs[-1].pruned else "completed"
            value = math.fsum(run.best for run in runs if run.best is not None) / len(runs)
        except ERRORS_OF_TRIALS as error:
            if isinstance(error, UserError) and not study.completed:
                study.discard()  # rather a mistake than a property of these options
                raise
            state, reason = "failed", one_line(str(error))
        facts = {
            "steps": sum(run.steps for run in runs),
            "seconds": round(time.monotonic() - start, 1),
            "folder": " ".join(os.path.relpath(run.folder) for run in runs if run.folder),
            "reason": reason,
        }
        study.tell(trial, state, value, facts)
        study.write_table()
        is_best = bool(study.completed) and study.completed[0].number == trial.number
        if is_best:
            self._write_best(study)
        result = reason if value is None else f"{self.metric} {value:.4g}{' (best so far)' if is_best else ''}"
        print(f"trial {trial.number} {state} after {facts['seconds']} s: {result}; {_listed(trial.params)}", flush=True)

    def _fit(self, values: Mapping[str, Any], seed: int, objective: Objective) -> None:
        """One run of a trial."""
        words = [*self.words, *self.space.words(values), f"--seed_everything={seed}", f"--run.name={self.name}"]
        with _quiet():
            run_trainer(["fit", *words], partial(TrialRun, objective=objective))
            finish_run()
        if objective.best is None and objective.validations:
            raise NonFiniteError(f"{self.metric} was NaN in every validation")
        if objective.best is None:
            raise UserError(
                f"{self.metric} was never measured: let a trial be long enough for a validation, by "
                "--trainer.max_steps or --trainer.val_check_interval"
            )

    def _seed(self, number: int) -> int:
        """Seed of a trial's run."""
        seed = self.config["seed_everything"]
        return number + (seed if isinstance(seed, int) else 0)

    # Results

    def _write_best(self, study: Study) -> None:
        best = study.completed[0]
        config = excerpt(self._plain(self._parse(best.params)), self.options)
        study.write_best(config, f"{self.metric} {best.value:.4g} in trial {best.number}, {best.user_attrs['folder']}")

    def _report(self, study: Study) -> None:
        """Prints what a study has found and what to type next."""
        states = Counter(study.state_of(trial) for trial in study.ended)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        if not study.completed:
            raise UserError(f"no trial was completed ({counts}); {self.folder / 'trials.csv'} has the reasons")
        best = study.completed[0]
        print(f"{states.total()} trials: {counts}; {self.folder}/trials.csv and trials.png show them")
        print(f"  best {self.metric}: {best.value:.4g} in trial {best.number}, {best.user_attrs['folder']}")
        own = next((trial for trial in study.completed if trial.params == self.own_values), None)
        if own is not None:
            print(f"  the recipe's own options: {own.value:.4g} in trial {own.number}")
        print(f"  best options, in {self.folder}/best.yaml: {_listed(best.params)}")
        print(f"Next: {program()} fit {shlex.join([*self.words, '--config', str(self.folder / 'best.yaml')])}")


def _prune(trial: Trial, validation: int, value: float) -> bool:
    trial.report(value, validation)
    return trial.should_prune()


def _listed(values: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def check_trainer(trainer: Trainer) -> None:
    """Raises a `UserError` if a Trainer is not one for trials."""
    if trainer.world_size > 1:
        raise UserError(f"tune trains on one device, not on {trainer.world_size}: give --trainer.devices 1")
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError("--trainer.fast_dev_run measures nothing: shorten the trials by --trainer.max_steps instead")


def metric_and_mode(trainer: Trainer, metric: str | None, mode: Mode | None) -> tuple[str, Mode]:
    """The metric of a search and its mode: those that are given, else those of a checkpoint callback.

    Raises:
        UserError: nothing says what they are, or the metric is of the test split.
    """
    monitored = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    found = next((c for c in monitored if metric in (None, c.monitor)), None)
    if found is None and metric is None:
        raise UserError("the recipe keeps no best checkpoint by a metric: give --metric and --mode")
    if found is None and mode is None:
        raise UserError(f"--mode must be given with --metric {metric}: min or max")
    name, mode = metric or found.monitor, mode or found.mode  # type: ignore[union-attr, assignment]
    if name.startswith("test/"):  # type: ignore[union-attr]
        raise UserError(f"{name} is of the test split, by which nothing is chosen: give --metric val/...")
    return name, mode  # type: ignore[return-value]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Lightning says in every run; warnings are shown."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
