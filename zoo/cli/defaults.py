"""Callbacks and plugins that every run on the command line has, unless the user chose others."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ProgressBar

from zoo.callbacks import ClassReport, PredictionWriter, ShortProgressBar, StopOnNonFinite, StopOnSignal
from zoo.callbacks.logger_state import LoggerState
from zoo.callbacks.stay_stopped import StayStopped
from zoo.checkpoints.writing import AtomicCheckpointIO
from zoo.contracts import PredictiveClassifier, offers


def as_list(value: Any) -> list[Any]:
    """None, one object or a list of objects as a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def default_callbacks(command: str, given: list[Callback], progress_bar: bool, model: object = None) -> list[Callback]:
    """Callbacks to add to the user's.

    Args:
        command: fit, validate, test or predict.
        given: the user's callbacks.
        progress_bar: whether the Trainer shows a progress bar.
        model: model that is run.
    """
    added: list[Callback] = []
    if progress_bar and not _has(given, ProgressBar):
        added.append(ShortProgressBar())
    if command == "predict" and not _has(given, BasePredictionWriter):
        added.append(PredictionWriter())
    if command == "test" and offers(model, PredictiveClassifier) and not _has(given, ClassReport):
        added.append(ClassReport())
    if command == "fit":
        added += [StopOnSignal(), LoggerState(), StayStopped()]
        if not _has(given, StopOnNonFinite):
            added.append(StopOnNonFinite())
    return added


def default_plugins(given: list[Any]) -> list[Any]:
    """Plugins to add to the user's: atomic checkpoints."""
    return [] if _has(given, CheckpointIO) else [AtomicCheckpointIO()]


def _has(given: list[Any], kind: type) -> bool:
    return any(isinstance(one, kind) for one in given)
