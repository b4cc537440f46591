"""The last lines of `fit`: why training ended, the best checkpoint, and the command to use it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info

from zoo.callbacks.run_folder import run_folder
from zoo.cli.own_networks import own_networks
from zoo.cli.program import program
from zoo.cli.recipes import foreign_import
from zoo.errors import as_word
from zoo.models.classifier import Classifier


def print_summary(trainer: Trainer, model: Any) -> None:
    """Prints what a finished run has left and what to do next. Call it on all ranks.

    Args:
        trainer: Trainer after `fit`.
        model: trained model.
    """
    folder = run_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    best = next((c for c in checkpoints if c.monitor and c.best_model_path), None)
    path = next((p for c in checkpoints for p in (c.best_model_path, c.last_model_path) if p), "")
    rank_zero_info(f"Run finished after {trainer.global_step} steps; everything is in {folder}")
    for stopping in (c for c in trainer.callbacks if isinstance(c, EarlyStopping)):  # type: ignore[attr-defined]
        rank_zero_info(f"  {_reason_for_end(trainer, stopping)}")
    if best is not None and best.best_model_score is not None:
        rank_zero_info(
            f"  best {best.monitor}: {best.best_model_score.item():.4g} after epoch "
            f"{_epoch_of(best.best_model_path)}, in {as_word(best.best_model_path)}"
        )
    folders = (folder / "samples", folder / "attention")
    shown = [path for path in (*folders, *sorted(folder.glob("*.png"))) if path.exists()]
    if shown:
        rank_zero_info(f"  to look at: {', '.join(map(str, shown))}")
    if path and isinstance(model, Classifier):
        config = folder / "config.yaml"
        named = f" --config {as_word(config)}" if config.is_file() and foreign_import(config) else ""
        rank_zero_info(f"Next: {program()} test{named} --ckpt_path {as_word(path)}")
        if model.trained_on.preprocessing is not None:
            options = f"--images FOLDER{_config_option(model, folder)}"
            rank_zero_info(f"Next: {program()} predict --ckpt_path {as_word(path)} {options}")
    if path and callable(getattr(model, "sample", None)):
        if callable(getattr(model, "stream", None)):
            options = "--max_new_tokens 500"
        else:
            options = "--n 8 --per_class true" if getattr(model, "conditional", False) else "--n 64"
        rank_zero_info(f"Next: {program()} sample --ckpt_path {as_word(path)} {options}{_config_option(model, folder)}")


def _config_option(model: Any, folder: Path) -> str:
    """The option by which a command builds networks of the user's own; empty if the model has none."""
    return f" --config {as_word(folder / 'config.yaml')}" if own_networks(model.hparams) else ""


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
