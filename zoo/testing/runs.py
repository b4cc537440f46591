"""Short runs that print nothing, which all checks share.

A run has two epochs of four batches. A checkpoint is written after the third, in the middle of an epoch, so that a
resumed run has to restore the position in the data, the random states and the next epoch's order.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo._lightning import after_each_batch
from zoo.contracts import accepts
from zoo.errors import check_choice
from zoo.seeding import capture_random_state, restore_random_state
from zoo.testing.answers import flat

EPOCHS, BATCHES = 2, 4
SAVED_AFTER = 3  # batches

#: Attributes of a data module that become arguments of the model, as on the command line.
LINKS = {
    "input_shape": "input_shape",
    "num_classes": "num_classes",
    "tokenizer_description": "tokenizer",
    "output_length": "output_length",
}

# Parts of a run, built anew for each


def build(part: Any, arguments: Mapping[str, Any] | None = None) -> Any:
    """A part of a run: built by a class or function, or a copy of an object, which training would change."""
    if isinstance(part, nn.Module | LightningDataModule):
        return copy.deepcopy(part)
    return part(**copy.deepcopy(dict(arguments or {})))


def linked(part: Any, data: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model that come from the data, as on the command line, and those that are given."""
    if isinstance(part, nn.Module):
        return {}
    links = {
        argument: getattr(data, name)
        for name, argument in LINKS.items()
        if getattr(data, name, None) is not None and _takes(part, argument)
    }
    return links | dict(given)


def _takes(part: Any, argument: str) -> bool:
    """Whether a class or function has an argument, or passes it on as `**kwargs` to the constructor of a base class."""
    if accepts(part, argument):
        return True
    passes_on = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(part).parameters.values())
    bases = part.__mro__[1:] if passes_on and inspect.isclass(part) else ()
    return any(accepts(base, argument) for base in bases if "__init__" in vars(base) and base is not object)


@dataclass(frozen=True)
class Case:
    """A model on data, and callbacks, each built anew for every run.

    Attributes:
        model: class or function that builds the model, or a model, which is copied.
        data: class or function without arguments that builds the data module, or a data module, which is copied.
        arguments: arguments of the model; those of `LINKS` come from the data.
        name: name of what is checked, the subject of all messages.
        callbacks: functions that build the callbacks.
    """

    model: Any
    data: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    callbacks: tuple[Callable[[], Callback], ...] = ()

    def build(self, bare: bool = False) -> tuple[LightningModule, Any]:
        """A new model and new data.

        Args:
            bare: hide everything but the batches from the model.
        """
        data = build(self.data)
        model = build(self.model, linked(self.model, data, self.arguments))
        return model, BareData(data) if bare else data


class BareData(LightningDataModule):
    """The batches of a data module and nothing else, as a foreign data module has them."""

    def __init__(self, data: LightningDataModule) -> None:
        super().__init__()
        self._data = data

    def prepare_data(self) -> None:
        self._data.prepare_data()

    def setup(self, stage: str) -> None:
        self._data.trainer = self.trainer
        self._data.setup(stage)

    def train_dataloader(self) -> Any:
        return self._data.train_dataloader()

    def val_dataloader(self) -> Any:
        return self._data.val_dataloader()

    def test_dataloader(self) -> Any:
        return self._data.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self._data.on_after_batch_transfer(batch, dataloader_idx)


# Running


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines of Lightning and no warnings inside the context."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All random numbers start from this seed inside the context; afterwards their states are as before."""
    states, variables = capture_random_state(torch.device("cpu")), ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in variables}
    try:
        seed_everything(seed, verbose=False)
        yield
    finally:
        restore_random_state(states, torch.device("cpu"))
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def trainer_for(folder: Path, **options: Any) -> Trainer:
    """A Trainer of two epochs of four batches on the CPU, which writes into a folder and shows nothing."""
    # Lightning refuses a callback of these kinds where they are not enabled.
    kinds = {"checkpointing": Checkpoint, "progress_bar": ProgressBar, "model_summary": ModelSummary}
    given = options.get("callbacks", ())
    enabled = {f"enable_{name}": any(isinstance(c, kind) for c in given) for name, kind in kinds.items()}
    defaults: dict[str, Any] = enabled | {
        "accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0,
        "max_epochs": EPOCHS, "limit_train_batches": BATCHES, "limit_val_batches": 2, "limit_test_batches": 2,
        "limit_predict_batches": 2, "log_every_n_steps": 2, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(**(defaults | options))


@dataclass
class Run:
    """A run that has ended.

    Attributes:
        model: model after training.
        trainer: its Trainer.
        losses: loss of each backward pass.
        with_gradient: ids of parameters that had a gradient in an optimizer step.
        before: parameters before training, by name.
        required: whether each parameter was trainable before training, by name.
        callbacks: the callbacks of the case.
    """

    model: LightningModule
    trainer: Trainer
    losses: list[Tensor]
    with_gradient: set[int]
    before: dict[str, Tensor]
    required: dict[str, bool]
    callbacks: list[Callback]

    @property
    def state(self) -> dict[str, Any]:
        """Parameters, buffers and states of the optimizers by name."""
        optimizers = {f"optimizer {k}": o.state_dict()["state"] for k, o in enumerate(self.trainer.optimizers)}
        return {**self.model.state_dict(), **dict(flat(optimizers))}


def train(
    case: Case,
    folder: Path,
    seed: int = 0,
    resume: Path | None = None,
    bare: bool = False,
    callbacks: Collection[Callback] = (),
    **options: Any,
) -> Run:
    """Trains a case.

    Args:
        case: model, data and callbacks.
        folder: folder of everything that is written.
        seed: seed of all random numbers.
        resume: checkpoint to resume from.
        bare: hide everything but the batches from the model.
        callbacks: further callbacks.
        **options: options of the Trainer.
    """
    with quiet(), seeded(seed):
        model, data = case.build(bare)
        own = [make() for make in case.callbacks]
        losses = Losses()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        required = {name: p.requires_grad for name, p in model.named_parameters()}
        trainer = trainer_for(folder, callbacks=[*own, losses, *callbacks], **options)
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
        return Run(model, trainer, losses.values, losses.with_gradient, before, required, own)


def run_checks(checks: Mapping[str, Callable[..., None]], names: Collection[str] | None, *arguments: Any) -> None:
    """Calls checks in their order.

    Args:
        checks: all checks by name.
        names: names of those to call; None for all.
        *arguments: arguments of each check.

    Raises:
        UserError: there is no check of a name.
    """
    for name in names or ():
        check_choice("check", name, checks)
    for name, check in checks.items():
        if names is None or name in names:
            check(*arguments)


# Callbacks and a logger of the runs


class Losses(Callback):
    """Keeps the loss of each backward pass, and which parameters had a gradient."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.with_gradient: set[int] = set()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.values.append(loss.detach().clone())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        stepping = (p for group in optimizer.param_groups for p in group["params"])
        self.with_gradient |= {id(p) for p in stepping if p.grad is not None}


class SaveAfter(Callback):
    """Writes a checkpoint after a number of batches.

    Args:
        path: path to the checkpoint.
        batches: number of batches.
        fail_after: number of batches after which the run fails, as if the process were killed; None for never.
    """

    def __init__(self, path: Path, batches: int = SAVED_AFTER, fail_after: int | None = None) -> None:
        self.path, self.batches, self.fail_after = path, batches, fail_after

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        after_each_batch(trainer, lambda: self._after_batch(trainer))

    def _after_batch(self, trainer: Trainer) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        if done == self.batches:
            trainer.save_checkpoint(self.path)
        if done == self.fail_after:
            raise Interrupted


class Interrupted(Exception):  # noqa: N818, as it is no error
    """The end of a run that is resumed later."""


class MemoryLogger(Logger):
    """Keeps what is logged as (step, metrics), and names a folder for what callbacks write.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.rows_logged: list[tuple[int, dict[str, float]]] = []
        self._folder = folder

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows_logged.append((step or 0, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def after(self, step: int) -> list[tuple[int, str, float]]:
        """What was logged at this step or later, but for speeds: step, name and value, sorted."""
        rows = [(at, name, value) for at, metrics in self.rows_logged for name, value in metrics.items() if at >= step]
        return sorted(row for row in rows if "per_second" not in row[1])
