"""CPU seconds of a whole `zoo fit`, and the share of each of its parts.

Every part of a command is timed where it begins and ends: imports, the parser, data, each hook of each callback, each
logger, validation, checkpoints, and forward, backward and optimizer of a training step. Parts nest, and each has the
time that is in none of the parts inside it; "Lightning's loops" is what is left of `Trainer.fit`. The clock is the CPU
time of the main thread; what other threads and other processes (the helper of Weights & Biases) take has rows of its
own. The parts are wrapped from outside, so that what is measured is the command as it is. Usage:

    python -m benchmarks.command_cost gan_digits.yaml
    python -m benchmarks.command_cost mlp.yaml --trainer.max_epochs=5

Other options are those of `zoo fit`. The command is run once, in this process; to compare two checkouts, run theirs in
turn.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from typing import Any
from unittest.mock import patch

IMPORTS, PARSER, BUILDING = "start and imports", "parser and recipes", "building model, data and Trainer"
FORWARD, BACKWARD, OPTIMIZER = "training: forward", "training: backward", "training: optimizer"
DATA, LOGGING, LOOPS = "data", "logged values", "Lightning's loops"
VALIDATION, CHECKPOINTS, WANDB = "validation", "checkpoints", "Weights & Biases"
REST, THREADS, HELPER = "the rest", "other threads", "other processes"
TRAINING = (FORWARD, BACKWARD, OPTIMIZER)
LOGGER_METHODS = (
    "log_metrics", "log_hyperparams", "log_image", "log_video", "log_text", "log_table", "save", "flush", "finalize",
    "after_save_checkpoint",
)  # fmt: skip
DATA_METHODS = (
    "prepare_data", "setup", "train_dataloader", "val_dataloader", "on_before_batch_transfer",
    "on_after_batch_transfer", "transfer_batch_to_device",
)  # fmt: skip


class NestedTimer:
    """CPU seconds of the main thread by part, where each part excludes the parts inside it.

    Args:
        part: part that has begun.
        since: reading of the clock at which it began.
    """

    def __init__(self, part: str, since: float) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.moved = 0.0  # seconds of other threads that are charged to a part
        self._open = [part]
        self._since = since
        self._thread = threading_id()

    def begin(self, part: str) -> None:
        """Opens a part inside the current one."""
        self._charge()
        self._open.append(part)

    def end(self) -> None:
        """Closes the current part."""
        self._charge()
        self._open.pop()

    def replace(self, part: str) -> None:
        """Closes the current part, and opens another one in its place."""
        self._charge()
        self._open[-1] = part

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The part inside the context."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls in the main thread are a part."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading_id() != self._thread:
                return function(*args, **kwargs)
            self.begin(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        return call

    def timed_with_threads(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are a part, with what other threads take meanwhile."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = other_threads()
            try:
                return timed(*args, **kwargs)
            finally:
                moved = other_threads() - before
                self.seconds[part] += moved
                self.moved += moved

        timed = self.timed(part, function)
        return call

    def _charge(self) -> None:
        now = time.thread_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def other_threads() -> float:
    """CPU seconds of this process that are not those of the current thread."""
    return time.process_time() - time.thread_time()


def threading_id() -> int:
    """Number of the current thread."""
    import _thread

    return _thread.get_ident()


@contextmanager
def timed_imports(timer: NestedTimer) -> Iterator[None]:
    """Charges modules that are imported inside the context, wherever that is, to the imports."""
    with ExitStack() as stack:
        for loader, method in ((SourceFileLoader, "exec_module"), (ExtensionFileLoader, "create_module")):
            call = timer.timed(IMPORTS, getattr(loader, method))
            stack.enter_context(patch.object(loader, method, call))
        yield


@contextmanager
def timed_command(timer: NestedTimer) -> Iterator[None]:
    """Charges what a command does inside the context to its parts."""
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.strategies import Strategy
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    import zoo.cli.fit
    import zoo.tracking.wandb_process

    def time_objects(trainer: Any, model: Any, datamodule: Any = None) -> None:
        """Wraps the methods of the objects that the Trainer calls."""
        kinds = [
            *[(data_part(name), datamodule, name) for name in DATA_METHODS],
            *[(LOGGING, model, name) for name in ("log", "log_dict")],
            (VALIDATION, trainer.fit_loop.epoch_loop.val_loop, "run"),
            *[(logger_part(logger), logger, name) for logger in trainer.loggers for name in LOGGER_METHODS],
            *[(type(one).__name__, one, name) for one in trainer.callbacks for name in hooks(one)],
        ]
        for part, owner, name in kinds:
            if callable(function := getattr(owner, name, None)):
                setattr(owner, name, timer.timed(part, function))

    @functools.wraps(Trainer.fit)  # whose signature the parser reads
    def fit(self: Any, model: Any, datamodule: Any = None, **kwargs: Any) -> None:
        time_objects(self, model, datamodule)
        with timer.part(LOOPS):
            original_fit(self, model, datamodule=datamodule, **kwargs)

    def optimizer_step(self: Any, optimizer: Any, closure: Callable[[], Any], *rest: Any, **kwargs: Any) -> Any:
        with timer.part(OPTIMIZER):
            return original_step(self, optimizer, timer.timed(LOOPS, closure), *rest, **kwargs)

    original_fit, original_step = Trainer.fit, Strategy.optimizer_step
    functions = [
        (PARSER, zoo.cli.fit, "resolve_arguments"),
        (PARSER, LightningCLI, "setup_parser"),
        (PARSER, LightningCLI, "parse_arguments"),
        (BUILDING, LightningCLI, "instantiate_classes"),
        (WANDB, zoo.cli.fit, "finish_run"),
        (WANDB, zoo.cli.fit, "end_helper"),
        (DATA, CombinedLoader, "__next__"),
        (DATA, CombinedLoader, "__iter__"),
        (FORWARD, Strategy, "training_step"),
        (BACKWARD, torch.Tensor, "backward"),
        (CHECKPOINTS, Trainer, "save_checkpoint"),
        (WANDB, zoo.cli.fit, "loggers_of_run"),
    ]
    with ExitStack() as stack:
        for part, owner, name in functions:
            stack.enter_context(patch.object(owner, name, timer.timed(part, getattr(owner, name))))
        # wandb is started in a thread of its own, for which the main thread waits.
        call_within = timer.timed_with_threads(WANDB, zoo.tracking.wandb_process.call_within)
        stack.enter_context(patch.object(zoo.tracking.wandb_process, "call_within", call_within))
        stack.enter_context(patch.object(Trainer, "fit", fit))
        stack.enter_context(patch.object(Strategy, "optimizer_step", optimizer_step))
        yield


def hooks(callback: Any) -> list[str]:
    """Names of the hooks that a callback has of its own."""
    from lightning.pytorch import Callback

    names = [name for name in dir(Callback) if name.startswith(("on_", "setup", "teardown", "state_dict"))]
    return [name for name in names if getattr(type(callback), name) is not getattr(Callback, name)]


def data_part(name: str) -> str:
    """Part of a method of the data module: reading and splitting is a part of its own."""
    return f"{DATA}: setup" if name in ("prepare_data", "setup") else DATA


def logger_part(logger: Any) -> str:
    """Part of a logger."""
    name = type(logger).__name__
    return WANDB if "Wandb" in name else name


def child_seconds() -> float:
    """CPU seconds of other processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def measure(recipe: str, folder: str, extra: Sequence[str], start: float) -> dict[str, float]:
    """Runs a command; returns its CPU seconds by part.

    Args:
        recipe: recipe.
        folder: folder of the run.
        extra: further options of `fit`.
        start: reading of the main thread's clock from which the command is measured.
    """
    others, children = other_threads(), child_seconds()
    timer = NestedTimer(IMPORTS, start)
    with timed_imports(timer):
        from zoo.cli.main import main

        with timed_command(timer):
            timer.replace(REST)
            main(["fit", f"--config={recipe}", f"--run.root={folder}", *extra])
            timer.end()
    seconds = dict(timer.seconds)
    seconds[THREADS] = other_threads() - others - timer.moved
    seconds[HELPER] = child_seconds() - children
    return seconds


def main(args: Sequence[str] | None = None) -> None:
    start = 0.0 if args is None else time.thread_time()  # a program has begun with its process
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe to train")
    parser.add_argument("--least", type=float, default=0.5, help="smaller parts are one row, in %% (default: 0.5)")
    options, extra = parser.parse_known_args(args)
    os.environ.setdefault("WANDB_MODE", "offline")
    typed, sys.argv = sys.argv, ["zoo"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(options.recipe, folder, extra, start)
    finally:
        sys.argv = typed
    from benchmarks.output import markdown_table, report

    total = sum(seconds.values())
    report(options.recipe, None, cpu_seconds=round(total, 2), parts=rounded(seconds))
    small = [name for name, value in seconds.items() if value < total * options.least / 100]
    ordered = sorted(((name, value) for name, value in seconds.items() if name not in small), key=lambda part: -part[1])
    ordered.append((f"{len(small)} parts below {options.least:g}%", sum(seconds[name] for name in small)))
    rows = [[name, f"{value:.2f}", f"{100 * value / total:.1f}"] for name, value in ordered]
    training = sum(seconds.get(name, 0.0) for name in TRAINING)
    rows += [["all", f"{total:.2f}", "100"], ["training steps", f"{training:.2f}", f"{100 * training / total:.1f}"]]
    print(markdown_table([options.recipe, "CPU seconds", "%"], rows))


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds with three digits after the point."""
    return {name: round(value, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
