"""Loggers of a run on the command line: the run's own, and those that the user names with `--trainer.logger`.

`--trainer.logger+=NAME` adds one; `--trainer.logger NAME` replaces Weights & Biases. The folder and metrics.csv are the
run's own in any case.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from zoo.cli.defaults import as_list
from zoo.cli.messages import import_class
from zoo.cli.program import wandb_program
from zoo.errors import UserError
from zoo.tracking.run import Run, metrics_logger
from zoo.tracking.wandb import RunWandb, WandbOptions, wandb_logger, wandb_mode

#: The default of `trainer.logger`, to which `+=` adds.
DEFAULT_LOGGERS = [{"class_path": f"{RunWandb.__module__}.{RunWandb.__name__}"}]
#: What `pip install` needs for loggers whose package is not installed with the zoo.
PACKAGES = {
    "TensorBoardLogger": "lightning-zoo[tensorboard]",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet-ml",
}


def loggers_of_run(given: Any, run: Run, options: WandbOptions) -> list[Logger] | bool:
    """Loggers for `fit`: metrics.csv, Weights & Biases unless it is replaced, and those that the user names.

    Args:
        given: value of `trainer.logger`, of which nothing has been built yet.
        run: the run, whose folder exists.
        options: options of Weights & Biases.

    Returns:
        False if the user wants no logger.

    Raises:
        UserError: the package of a logger is not installed.
    """
    if given is False:
        return False
    specs = as_list(given) if given not in (None, True) else [Namespace(spec) for spec in DEFAULT_LOGGERS]
    others, own, taken = [], None, set[str]()
    for spec in specs:
        target = import_class(spec.class_path)
        if target in (RunWandb, WandbLogger):
            own = {**(own or {}), **_changed(target, spec)}
        else:
            # Only rank 0 knows the folder and writes, and not every logger leaves that to rank 0 by itself.
            others.append(_build(_inside(run.folder, target, spec, taken)) if run.first else DummyLogger())
    wandb = None if own is None else wandb_logger(run, options, own, wandb_program())
    return [metrics_logger(run), *([wandb] if wandb else []), *others]


def has_wandb(given: Any) -> bool:
    """Whether the run's own Weights & Biases logger is among those of `trainer.logger`: it has not been replaced."""
    return given in (None, True) or any(import_class(spec.class_path) is RunWandb for spec in as_list(given or None))


def loggers_of_evaluation(given: Any) -> list[Logger]:
    """Loggers for `validate`, `test` and `predict`: those that the user names. Without a folder they are in the working
    folder, where Lightning's loggers have one of their own for each run."""
    specs = [] if given in (None, True, False) else as_list(given)
    return [_build(with_save_dir(spec)) for spec in specs if import_class(spec.class_path) is not RunWandb]


def with_save_dir(spec: Any) -> Any:
    """A logger's class and arguments, with a `save_dir` if it is required and not given; other values as they are."""
    arguments = spec.get("init_args") if isinstance(spec, Namespace) else None
    if arguments is None or "save_dir" not in arguments or arguments.save_dir is not None:
        return spec
    return _replaced(spec, save_dir=".")


def _inside(folder: Path, target: type, spec: Namespace, taken: set[str]) -> Namespace:
    """A logger's class and arguments, with a folder of its own inside the run's if it takes one and none is given."""
    changed, parameters = _changed(target, spec), inspect.signature(target).parameters
    if "save_dir" not in parameters or "save_dir" in changed:
        return spec
    if issubclass(target, WandbLogger):
        offline = {"offline": True} if "offline" in parameters and wandb_mode(WandbOptions()) == "offline" else {}
        return _replaced(spec, **{"save_dir": str(folder), **offline, **changed})
    kind = target.__name__.removesuffix("Logger").lower() or "logger"
    number, name = 0, kind
    # A CSVLogger deletes the metrics.csv of a run that is resumed; others append.
    while name in taken or (issubclass(target, CSVLogger) and (folder / name).exists()):
        number += 1
        name = f"{kind}-{number}"
    taken.add(name)
    flat = {"name": "", "version": ""} if issubclass(target, (CSVLogger, TensorBoardLogger)) else {}
    return _replaced(spec, **{"save_dir": str(folder / name), **flat, **changed})


def _changed(target: type, spec: Namespace) -> dict[str, Any]:
    """Arguments that differ from the defaults of the class."""
    given = {**(spec.get("init_args") or Namespace()).as_dict(), **(spec.get("dict_kwargs") or {})}
    parameters = inspect.signature(target).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {name: value for name, value in given.items() if value != defaults.get(name)}


def _replaced(spec: Namespace, **arguments: Any) -> Namespace:
    changed = spec.clone()
    changed.init_args = Namespace({**(spec.get("init_args") or Namespace()).as_dict(), **arguments})
    return changed


def _build(spec: Namespace) -> Logger:
    name = spec.class_path.rsplit(".", 1)[-1]
    parser = ArgumentParser()
    parser.add_argument("--logger", type=Logger)
    try:
        return parser.instantiate(Namespace(logger=spec)).logger
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ModuleNotFoundError):
            cause = cause.__cause__ or cause.__context__  # the parser wraps what a constructor raises
        if cause is None:
            raise
        way = f"pip install {PACKAGES[name]}" if name in PACKAGES else str(cause)
        raise UserError(f"--trainer.logger {name} needs a package that is not installed: {way}") from error
