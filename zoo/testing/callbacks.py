"""Checks of a callback: what every callback of the zoo, and of a plugin, must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.testing.answers import ContractError, difference, explained, holds, in_words
from zoo.testing.ranks import on_ranks, rank_options
from zoo.testing.runs import (
    BATCHES,
    EPOCHS,
    SAVED_AFTER,
    BareData,
    Case,
    Interrupted,
    MemoryLogger,
    Run,
    SaveAfter,
    build,
    quiet,
    run_checks,
    seeded,
    train,
    trainer_for,
)


def check_callback(
    cls: Callable[..., Callback],
    model: Any = None,
    data: Any = None,
    *,
    processes: int = 2,
    checks: Collection[str] | None = None,
    **arguments: Any,
) -> None:
    """Checks that a callback keeps the contracts of the zoo, by short runs on the CPU.

    | check | what must hold |
    | --- | --- |
    | training | training with the callback ends with the weights of training without it, bit for bit |
    | test | with the callback `test` works and measures the same |
    | checkpoint | its state in a checkpoint consists of tensors and plain values |
    | resume | a run that fails and is resumed ends with the same state, metrics and files as an uninterrupted one |
    | other_models | a model without any contract works, or is refused by a `UserError` when the run is set up |
    | processes | training on several ranks ends, and with the weights of training without the callback |

    Example:
        >>> def test_my_callback_keeps_the_contract():
        ...     check_callback(MyCallback, every_n_steps=2)

    Args:
        cls: class of the callback, or a function that builds it.
        model: class of a model that the callback is for, or a function that builds it, whose arguments `input_shape`
            and `num_classes` come from the data; or a model, which is copied for every run (default: a small
            `MLPClassifier`).
        data: class of the data module, or a function without arguments that builds it, or a data module, which is
            copied for every run (default: `Digits` with a batch size of 32).
        processes: number of processes of the check of that name; 1 leaves it out.
        checks: names of the checks to run; None for all.
        **arguments: arguments of the callback. A run has eight batches, so let it act every one or two steps.

    Raises:
        ContractError: a check fails, an AssertionError; one sentence says what does not hold and how to mend it.
        UserError: there is no check of a name.
    """
    name = getattr(cls, "__name__", type(cls).__name__)
    with explained(f"{name} cannot be built", "name its arguments in check_callback"):
        build(cls, arguments)
    case = Case(model or _default_model(), data or _default_data(), name=name)
    with tempfile.TemporaryDirectory() as folder:
        run_checks(CALLBACK_CHECKS, checks, Subject(case, partial(build, cls, arguments), Path(folder), processes))


def _default_model() -> Any:
    from zoo import MLPClassifier

    return partial(MLPClassifier, width=8, depth=1)


def _default_data() -> Any:
    from zoo.datamodules import Digits

    return partial(Digits, batch_size=32)


class Subject:
    """A callback that is checked, and runs with and without it that several checks look at.

    Args:
        case: model and data.
        make: function that builds the callback.
        folder: folder of the runs.
        processes: number of processes.
    """

    def __init__(self, case: Case, make: Callable[[], Callback], folder: Path, processes: int) -> None:
        self.without, self.name, self.folder, self.processes = case, case.name, folder, processes
        self.case = replace(case, callbacks=(make,))

    @cached_property
    def plain(self) -> Run:
        """A run without the callback."""
        with explained("the model does not train without the callback", "give check_callback another model or data"):
            return train(self.without, self.folder / "without", logger=MemoryLogger(self.folder / "without"))

    @cached_property
    def whole(self) -> Run:
        """An uninterrupted run with the callback, which writes a checkpoint after its third batch."""
        with explained(f"training fails with {self.name}", "run Trainer.fit with it by itself to see the whole error"):
            return self.train("with", SaveAfter(self.folder / "with.ckpt"))

    def train(self, name: str, *callbacks: Callback, **options: Any) -> Run:
        """Trains with the callback, in a folder of its own."""
        folder = self.folder / name
        return train(self.case, folder, callbacks=callbacks, logger=MemoryLogger(folder), **options)


def check_training(subject: Subject) -> None:
    """Training with the callback ends with the weights of training without it."""
    different = difference(subject.plain.state, subject.whole.state)
    holds(
        different is None,
        f"{subject.name} changes training: it ends with another {different}; draw random numbers from a generator of "
        "your own, restore modes (zoo.models.base.eval_mode), and change no parameter",
    )


def check_test(subject: Subject) -> None:
    """With the callback, `test` works and measures the same."""
    measured = []
    for case in (subject.without, subject.case):
        with explained(f"test fails with {subject.name}", "set up in setup what each stage needs"), quiet(), seeded(0):
            model, data = case.build()
            callbacks = [make() for make in case.callbacks]
            logger = MemoryLogger(subject.folder / "test")
            trainer = trainer_for(subject.folder, callbacks=callbacks, logger=logger)
            trainer.test(model, datamodule=data, verbose=False)
            measured.append({name: value.clone() for name, value in trainer.callback_metrics.items()})
    alone, together = measured
    different = difference(alone, {name: value for name, value in together.items() if name in alone})
    holds(different is None, f"with {subject.name} the test measures another {different}; leave the model as it is")


def check_checkpoint(subject: Subject) -> None:
    """Its state in a checkpoint consists of tensors and plain values."""
    _ = subject.whole  # which writes the checkpoint
    remedy = "return tensors, numbers, strings, lists and dictionaries from state_dict"
    with explained(f"a checkpoint with the state of {subject.name} does not load with weights_only=True", remedy):
        torch.load(subject.folder / "with.ckpt", weights_only=True)


def check_resume(subject: Subject) -> None:
    """A run that fails after a checkpoint and is resumed ends as an uninterrupted one."""
    whole, path = subject.whole, subject.folder / "resumed.ckpt"
    # It fails in the second epoch, so that a validation and several steps are done twice.
    with suppress(Interrupted):
        subject.train("resumed", SaveAfter(path, fail_after=BATCHES * EPOCHS - 2))
    remedy = "restore in load_state_dict what state_dict returns"
    with explained(f"{subject.name} does not resume", remedy):
        resumed = subject.train("resumed", seed=1, resume=path)
    advice = "keep in state_dict and load_state_dict what it has counted, collected and written"
    if difference(whole.state, resumed.state):
        _check_resume_without(subject)
    for what, first, second in (
        ("weights", whole.state, resumed.state),
        ("state", _states(whole), _states(resumed)),
        ("metrics", _rows(whole), _rows(resumed)),
        ("files", _files(subject.folder / "with"), _files(subject.folder / "resumed")),
    ):
        different = difference(first, second)
        holds(
            different is None,
            f"with {subject.name} a run resumed after batch {SAVED_AFTER} ends with other {what} ({different}); "
            f"{advice}",
        )


def _check_resume_without(subject: Subject) -> None:
    """The model itself resumes exactly."""
    path = subject.folder / "without.ckpt"
    with explained("the model does not train and resume without the callback", "see zoo.testing.check_model"):
        whole = train(subject.without, subject.folder, callbacks=[SaveAfter(path)])
        different = difference(whole.state, train(subject.without, subject.folder, seed=1, resume=path).state)
    holds(
        different is None,
        f"the model that {subject.name} is checked with does not resume exactly by itself ({different}); give "
        "check_callback one that passes check_model",
    )


def _states(run: Run) -> dict[str, Any]:
    """State of the callback as a checkpoint holds it, without the folders of runs and what is counted by time."""
    return {f"{k}": _without_folder(c.state_dict(), run) for k, c in enumerate(run.callbacks)}


def _without_folder(value: Any, run: Run) -> Any:
    if isinstance(value, Mapping):
        return {_without_folder(key, run): _without_folder(part, run) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folder(part, run) for part in value]
    folder = str(run.trainer.loggers[0].save_dir)
    return value.replace(folder, "") if isinstance(value, str) else value


def _rows(run: Run) -> list[tuple[int, str, float]]:
    """What was logged after the checkpoint, in both runs."""
    logger: Any = run.trainer.loggers[0]
    return logger.after(SAVED_AFTER)


def _files(folder: Path) -> dict[str, Any]:
    """Contents of the files of a run, without checkpoints, which hold times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".ckpt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Regression(LightningModule):
    """A linear model that offers no contract."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0].flatten(1).float()).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def check_other_models(subject: Subject) -> None:
    """A model without any contract works, or is refused by a UserError when the run is set up."""
    with quiet(), seeded(0):
        _, data = subject.case.build()
        callback = subject.case.callbacks[0]()
        model = Regression(torch.Size(data.input_shape).numel())
        logger = MemoryLogger(subject.folder / "other")
        trainer = trainer_for(subject.folder, callbacks=[callback], logger=logger)
        try:
            trainer.fit(model, datamodule=BareData(data))
        except UserError as error:
            holds(
                not trainer.global_step,
                f"{subject.name} refuses a model after {trainer.global_step} steps ({error}); check it in setup",
            )
        except Exception as error:
            raise ContractError(
                f"{subject.name} fails on a LightningModule without the methods it uses ({in_words(error)}); check "
                "them in setup by zoo.contracts.require"
            ) from error


def check_processes(subject: Subject) -> None:
    """Training on several ranks ends, and with the weights of training without the callback."""
    name, processes = subject.name, subject.processes
    if processes < 2:
        return
    task = partial(_train_on_rank, subject.without, subject.case, subject.folder / "ranks", processes)
    remedy = "call the same collectives on every rank, and write files on rank 0 only"
    with explained(f"{name} does not work on {processes} processes", remedy):
        ranks = on_ranks(task, processes)
    for rank, found in enumerate(ranks):
        different = difference(found["without"], found["with"])
        holds(
            different is None,
            f"{name} changes training on rank {rank} of {processes}: it ends with another {different}; draw random "
            "numbers from a generator of your own",
        )


def _train_on_rank(without: Case, case: Case, folder: Path, processes: int) -> dict[str, Any]:
    options = {"max_epochs": 1, **rank_options(processes)}
    first = train(without, folder / "without", logger=MemoryLogger(folder / "without"), **options)
    second = train(case, folder / "with", logger=MemoryLogger(folder / "with"), **(options | rank_options(processes)))
    return {"without": dict(first.model.state_dict()), "with": dict(second.model.state_dict())}


#: Checks of `check_callback`, by name, in the order in which they run.
CALLBACK_CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "training": check_training,
    "test": check_test,
    "checkpoint": check_checkpoint,
    "resume": check_resume,
    "other_models": check_other_models,
    "processes": check_processes,
}
