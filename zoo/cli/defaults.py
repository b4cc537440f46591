"""Callbacks, plugins and devices that every run on the command line has, unless the user chose others."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelSummary, ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler

from zoo.callbacks import ClassReport, PredictionWriter, RunReport, ShortProgressBar, StopOnNonFinite, StopOnSignal
from zoo.callbacks.logger_state import LoggerState
from zoo.callbacks.progress import ShortModelSummary
from zoo.callbacks.stay_stopped import StayStopped
from zoo.callbacks.threads import ChooseThreads
from zoo.checkpoints.writing import AtomicCheckpointIO
from zoo.contracts import PredictiveClassifier, offers
from zoo.errors import UserError, check_at_least

MatmulPrecision = Literal["auto", "highest", "high", "medium"]
MATMUL_HELP = (
    "precision of float32 matrix products, as torch.set_float32_matmul_precision; auto: high, which is TF32, on CUDA "
    "devices, and torch's own setting on others."
)

Threads = Literal["auto"] | int
THREADS_HELP = (
    "number of CPU threads of torch; auto: what OMP_NUM_THREADS says, else fit trains with as many as the layers have "
    "work for, at most one a core."
)
REPORT_HELP = "write report.html, one page on the run, into its folder when training has ended."
#: Number of threads before anything of the user's is imported.
_INITIAL_THREADS = torch.get_num_threads()


def set_matmul_precision(choice: MatmulPrecision, trainer: Trainer) -> None:
    """Sets the precision of float32 matrix products, which torch keeps for the whole process."""
    if choice != "auto":
        torch.set_float32_matmul_precision(choice)
    elif isinstance(trainer.accelerator, CUDAAccelerator):
        torch.set_float32_matmul_precision("high")


def set_threads(choice: Threads) -> None:
    """Sets the number of threads of torch, which keeps it for the whole process, unless it is left to the run."""
    if choice != "auto":
        check_at_least(1, threads=choice)
        torch.set_num_threads(choice)


def threads_are_given(choice: Threads) -> bool:
    """Whether the user has chosen the number of threads: by the option, by a variable, or in a plugin."""
    variables = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return choice != "auto" or variables or torch.get_num_threads() != _INITIAL_THREADS


class NoProfiler(PassThroughProfiler):
    """Profiler that measures nothing, without the generator that Lightning's starts and ends for each hook.

    There are more than a hundred of them in a step, and they take as long as a layer of a small network.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self._nothing


def allow_cheap_checks_for_gpus() -> None:
    """Lets torch ask for GPUs at the cost of a function call, on a machine without one from NVIDIA.

    Lightning has torch ask by NVIDIA's NVML, so that processes which are forked later can use the GPU. Without the
    library each question is a search for it on the disk, and an Adam of torch asks in every step.
    """
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def as_list(value: Any) -> list[Any]:
    """None, one object or a list of objects as a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def default_callbacks(
    command: str,
    given: list[Callback],
    progress_bar: bool,
    model_summary: bool = True,
    model: object = None,
    threads: Threads = "auto",
    report: RunReport | None = None,
) -> list[Callback]:
    """Callbacks to add to the user's.

    Args:
        command: fit, validate, test or predict.
        given: the user's callbacks.
        progress_bar: whether the Trainer shows a progress bar.
        model_summary: whether the Trainer shows a summary of the model.
        model: model that is run.
        threads: the user's number of threads.
        report: callback that writes the report of a run of `fit`; None for no report.
    """
    added: list[Callback] = []
    if progress_bar and not _has(given, ProgressBar):
        added.append(ShortProgressBar())
    if model_summary and not _has(given, ModelSummary):
        added.append(ShortModelSummary())
    if command == "test" and offers(model, PredictiveClassifier) and not _has(given, ClassReport):
        added.append(ClassReport())
    added.append(StopOnSignal())
    if command == "fit":
        added += [LoggerState(), StayStopped(), ChooseThreads(active=not threads_are_given(threads))]
        if not _has(given, StopOnNonFinite):
            added.append(StopOnNonFinite())
        if report is not None:
            for own in (callback for callback in given if isinstance(callback, RunReport)):
                own.program, own.describe = report.program, own.describe or report.describe
            if not _has(given, RunReport):
                added.append(report)
    return added


def with_prediction_writer(given: list[Callback], out: str | None, overwrite: bool) -> list[Callback]:
    """The user's callbacks for `predict`, with one that writes the predictions.

    Args:
        given: the user's callbacks.
        out: file to write; None for the default.
        overwrite: replace the file if it exists.

    Raises:
        UserError: the user has given a callback that writes predictions, and a file for another one.
    """
    if not _has(given, BasePredictionWriter):
        return [*given, PredictionWriter(out, overwrite)]
    if out is not None:
        raise UserError(f"--out {out} is for the default table, and a callback is given that writes one: leave it out")
    for writer in given:
        if isinstance(writer, PredictionWriter):
            writer.overwrite |= overwrite
    return given


def default_plugins(given: list[Any]) -> list[Any]:
    """Plugins to add to the user's: atomic checkpoints."""
    return [] if _has(given, CheckpointIO) else [AtomicCheckpointIO()]


def starts_on_all_devices(strategy: Any) -> bool:
    """Whether a run for which no devices are given is on all of them, and not on one.

    It is on all of them if the user chose a strategy, which is of use on several devices, or if a launcher has started
    several processes (torchrun, SLURM).

    Args:
        strategy: the Trainer's option of this name.
    """
    names = ["WORLD_SIZE", *(["SLURM_NTASKS"] if SLURMEnvironment.detect() else [])]
    counts = [os.environ.get(name, "") for name in names]  # other words are for whoever starts the processes to refuse
    return strategy not in (None, "auto") or any(count.isdecimal() and int(count) > 1 for count in counts)


def _has(given: list[Any], kind: type) -> bool:
    return any(isinstance(one, kind) for one in given)
