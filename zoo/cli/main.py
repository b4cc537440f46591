"""The program `zoo`, and `python cli.py` in a checkout.

This module imports nothing heavy: a command's module, and with it torch and Lightning, is imported when it is run.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

from zoo.cli.allocator import keep_freed_memory
from zoo.cli.output import outlive_readers
from zoo.cli.program import NAME, program
from zoo.distributed.signals import SignalHandlers, Stopped
from zoo.errors import NonFiniteError, UnresponsiveError, UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from logging import LogRecord

#: Module and function of each command; the function is given the words after the program's name.
COMMANDS = {
    "fit": ("zoo.cli.fit", "run_command"),
    "validate": ("zoo.cli.fit", "run_command"),
    "test": ("zoo.cli.fit", "run_command"),
    "predict": ("zoo.cli.predict", "run_predict"),
    "tune": ("zoo.cli.tune", "run_tune"),
    "sample": ("zoo.cli.sample", "run_sample"),
    "edit": ("zoo.cli.edit", "run_edit"),
    "export": ("zoo.cli.export", "run_export"),
    "report": ("zoo.cli.report", "run_report"),
    "list": ("zoo.cli.list", "run_list"),
    "play": ("zoo.cli.play", "run_play"),
    "tour": ("zoo.cli.tour", "run_tour"),
}

HELP = """usage: {program} COMMAND [options]

commands:
  fit        train a model:  {program} fit --config gan.yaml
  validate   measure a checkpoint on the validation split
  test       measure a checkpoint on the test split
  predict    classify pictures into a table:  {program} predict --ckpt_path FILE --images FOLDER
  tune       search for better options of a recipe:  {program} tune --config gan.yaml --search gan_space.yaml
  sample     draw from a generative model:  {program} sample --ckpt_path FILE --n 64 --out grid.png
  edit       edit an image with a diffusion model:  {program} edit --ckpt_path FILE --task vary --image in.png --sigma 1
  export     write a model to a file that runs without this package:  {program} export --ckpt_path FILE --out model.onnx
  report     make a page on a run, or compare runs:  {program} report runs/gan/version_0 runs/gan/version_1
  play       try out a trained model in the browser:  {program} play --model diffusion-digits
  list       list models, data, callbacks, recipes, search spaces and weights
  tour       draw a figure of the lecture:  {program} tour optimizers

{program} COMMAND --help lists the options of a command; {program} --version prints the version."""

#: Warnings of Lightning and torch that a user cannot act on.
IRRELEVANT = (
    ".*does not have many workers.*",  # the data is in memory, where workers gain nothing
    ".*treespec, LeafSpec.*",  # Lightning's use of torch
    "Using ModelCheckpoint with manual optimization.*",  # it saves after a step, as expected
    "Grad strides do not match.*",  # layer with one output; the copy costs nothing
    "The dirpath has changed from.*",  # a run's folder may be moved
    "Checkpoint directory .* exists and is not empty.*",  # as it does when a run is resumed
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command. A mistake ends the process with one line and exit code 2, SIGTERM with 143, Ctrl-C with 130.

    Args:
        args: words after the program's name; by default those of the process.
    """
    typed = list(sys.argv[1:] if args is None else args)
    outlive_readers()
    if isinstance(sys.stdout, TextIOWrapper):  # names of files need not be valid Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    if not typed or typed[0] in ("-h", "--help"):
        print(HELP.format(program=program()))
        return
    if typed[0] == "--version":
        from zoo import __version__

        print(f"lightning-zoo {__version__}")
        return
    try:
        with SignalHandlers() as signals:
            _run(typed, is_program=args is None)
        if signals.received:  # too late to stop anything, such as when training had ended
            raise Stopped(signals.received)
    except Stopped as stop:
        if stop.message and os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{NAME}: {stop.message}", file=sys.stderr)
        raise


def _run(typed: list[str], is_program: bool) -> None:
    try:
        if typed[0] not in COMMANDS:
            raise UserError(f"there is no command {typed[0]}{did_you_mean(typed[0], COMMANDS)}")
        if typed[0] not in ("list", "report"):
            _silence_irrelevant()
            keep_freed_memory()
        module, function = COMMANDS[typed[0]]
        with _no_garbage_collection() if is_program else nullcontext():
            imported = import_module(module)
        getattr(imported, function)(typed)
    except (NonFiniteError, UnresponsiveError) as error:
        _fail(str(error), code=1)
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        from zoo.cli.messages import as_user_error

        mistake = as_user_error(error)
        if mistake is None:
            raise
        _fail(str(mistake))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For the imports of a program: a fifth of their time is the search for garbage among objects that all stay.

    Later searches leave these objects out. In a process that is not ours alone, such as a notebook's, they must not:
    what else is in memory would never be collected.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _silence_irrelevant() -> None:
    import logging
    import warnings

    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_relevant)


def _is_relevant(record: LogRecord) -> bool:
    """Whether a log record is more than Lightning's advice to use another of its products."""
    return not any(name in record.getMessage() for name in ("litlogger", "litmodels"))


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"{NAME}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
