"""The end of `fit`: its last lines, and what the command line adds to the report of the run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info

from zoo.callbacks.run_folder import best_checkpoint, checkpoint_path, run_folder
from zoo.cli.options import typed_options
from zoo.cli.own_networks import own_networks
from zoo.cli.program import program
from zoo.cli.recipes import foreign_import
from zoo.errors import as_word
from zoo.models.classifier import Classifier
from zoo.registry import recipe_files
from zoo.report.commands import CHECKPOINT, CONFIG, RUN, Command, fill_in
from zoo.report.options import changed_options, flatten, merged
from zoo.report.page import PAGE
from zoo.sharing.training import LOADER

CONFIG_OPTIONS = ("--config", "-c")
_FILE, _REPEAT, _LAST = f"--ckpt_path {CHECKPOINT}", f"--config {CONFIG}", "--ckpt_path last"


def print_summary(trainer: Trainer, model: Any) -> None:
    """Prints what a finished run has left and what to do next. Call it on all ranks.

    Args:
        trainer: Trainer after `fit`.
        model: trained model.
    """
    folder = run_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    best, path = best_checkpoint(trainer), checkpoint_path(trainer)
    rank_zero_info(f"Run finished after {trainer.global_step} steps; everything is in {folder}")
    for reason in _reasons_of_early_stopping(trainer):
        rank_zero_info(f"  {reason}")
    if best is not None and best.best_model_score is not None:
        rank_zero_info(
            f"  best {best.monitor}: {best.best_model_score.item():.4g} after epoch "
            f"{_epoch_of(best.best_model_path)}, in {as_word(best.best_model_path)}"
        )
    places = (folder / PAGE, folder / "samples", folder / "attention", *sorted(folder.glob("*.png")))
    if shown := [place for place in places if place.exists()]:
        rank_zero_info(f"  to look at: {', '.join(map(str, shown))}")
    for command in next_commands(model, _named(folder)) if path else ():
        rank_zero_info(f"Next: {program()} {fill_in(command.words, folder, path)}")


def next_commands(model: Any, named: str = "") -> list[Command]:
    """The commands that most users type next.

    Args:
        model: trained model.
        named: option by which the configuration is named, with a space before it; see `_named`.
    """
    commands = []
    config = _config_option(model)
    if isinstance(model, Classifier):
        commands.append(Command("measure on the test split", f"test{named} {_FILE}"))
        if model.trained_on.preprocessing is not None:
            words = f"predict {_FILE} --images FOLDER{config}"
            commands.append(Command("classify pictures", words))
    if callable(getattr(model, "sample", None)):
        if callable(getattr(model, "stream", None)):
            options = "--max_new_tokens 500"
        else:
            options = "--n 8 --per_class true" if getattr(model, "conditional", False) else "--n 64"
        commands.append(Command("draw samples", f"sample {_FILE} {options}{config}"))
    return commands


def further_commands(model: Any, named: str = "") -> list[Command]:
    """Further commands about a run, for its report.

    Args:
        model: trained model.
        named: see `next_commands`.
    """
    tested = [] if isinstance(model, Classifier) else [Command("measure on the test split", f"test{named} {_FILE}")]
    return [
        *tested,
        Command("measure on the validation split", f"validate{named} {_FILE}"),
        Command("export", f"export {_FILE} --out model.onnx{_config_option(model)}"),
        Command("train longer, with more of --trainer.max_steps or --trainer.max_epochs", f"fit {_REPEAT} {_LAST}"),
        Command("repeat the run", f"fit {_REPEAT}"),
        Command("make this report again", f"report {RUN} --overwrite"),
    ]


def describe_run(trainer: Trainer, model: Any, words: Sequence[str], config: Path) -> dict[str, Any]:
    """What the command line adds to the facts of a run, see `zoo.callbacks.RunReport`.

    Args:
        trainer: Trainer at the end of `fit`.
        model: trained model.
        words: words of the command, in which recipes are paths.
        config: path to the configuration of the run.
    """
    names = {str(path): name for name, path in recipe_files().items()}
    shown = [names.get(word, word) for word in words]
    pairs = zip(words, [*words[1:], ""], strict=True)
    given = [
        word.partition("=")[2] or following for word, following in pairs if word.partition("=")[0] in CONFIG_OPTIONS
    ]
    options = flatten(_load(config)) if config.is_file() else {}
    recipe, named = merged([_load(Path(path)) for path in given]), _named(config.parent)
    commands = [*next_commands(model, named), *further_commands(model, named)]
    known: dict[str, Any] = {"command": f"{program()} {shlex.join(shown)}", "config": config.name}
    # A run that is resumed by its own configuration has the recipe that its name says.
    if not any(Path(path).absolute().parent == config.absolute().parent for path in given):
        known["recipes"] = [names.get(path, Path(path).name) for path in given]
        known["changed"] = changed_options(recipe, options, list(typed_options(words)))
    return {
        **known,
        "end": [*_reasons_of_early_stopping(trainer), *_limits_reached(trainer)],
        "next": commands if checkpoint_path(trainer) else [],
    }


def _load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), LOADER) or {}


def _named(folder: Path) -> str:
    """The option by which a configuration that imports classes of the user's own is named; empty if there are none."""
    config = folder / "config.yaml"
    return f" --config {CONFIG}" if config.is_file() and foreign_import(config) else ""


def _config_option(model: Any) -> str:
    """The option by which a command builds networks of the user's own; empty if the model has none."""
    return f" --config {CONFIG}" if own_networks(model.hparams) else ""


def _limits_reached(trainer: Trainer) -> list[str]:
    """Which limit of the length of the run was reached."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return [f"max_steps {trainer.max_steps:,} reached"]
    if 0 < (trainer.max_epochs or 0) <= trainer.current_epoch:
        return [f"max_epochs {trainer.max_epochs:,} reached"]
    return []


def _reasons_of_early_stopping(trainer: Trainer) -> list[str]:
    stopping = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
    return [_reason_for_end(trainer, callback) for callback in stopping]


def _reason_for_end(trainer: Trainer, stopping: EarlyStopping) -> str:
    """Whether early stopping ended the run, when and why, in one line."""
    if stopping.stopping_reason == EarlyStoppingReason.NOT_STOPPED:
        if not math.isfinite(stopping.best_score):
            return f"not stopped early: {stopping.monitor} was not measured"
        waited = stopping.wait_count
        when = f"{_validations(waited)} before the end" if waited else "at the end"
        return f"not stopped early: {stopping.monitor} was best {when}"
    why = stopping.stopping_reason_message
    if stopping.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
        why = f"{stopping.monitor} had not fallen" if stopping.mode == "min" else f"{stopping.monitor} had not risen"
        why += f" in {_validations(stopping.wait_count)}"
    return f"stopped early at step {trainer.global_step}, in epoch {stopping.stopped_epoch + 1}: {why}"


def _validations(count: int) -> str:
    return f"{count} validation{'' if count == 1 else 's'}"


def _epoch_of(path: str) -> int:
    """Epoch, counted from 1, in which a checkpoint was written."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"] + 1
