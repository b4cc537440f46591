"""Every private name of Lightning, jsonargparse, wandb and two parts of torch that the package touches, no others.

A public way was looked for and not found for each of them; the reason stands beside it. `PRIVATE_NAMES` lists them
for the test that says which are gone when a new version of a library lacks them. Last seen in lightning 2.6.6,
jsonargparse 4.53.0, wandb 0.31.0 and torch 2.14.1.

Private methods that are overridden stand in mixins here, which hand on to hooks with public names.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.distributed import distributed_c10d
from torch.optim import Optimizer

#: Class or module, private name in it, and the function or class of this file that needs it.
PRIVATE_NAMES = (
    ("lightning.pytorch.core.optimizer.LightningOptimizer", "_on_before_step", "skip_step_count"),
    ("lightning.pytorch.core.optimizer.LightningOptimizer", "_on_after_step", "skip_step_count"),
    ("lightning.pytorch.strategies.DDPStrategy", "_ddp_kwargs", "find_unused_parameters"),
    ("lightning.pytorch.strategies.ModelParallelStrategy", "_data_parallel_size", "set_data_parallel_size"),
    ("lightning.pytorch.core.mixins.HyperparametersMixin", "_log_hyperparams", "keep_hparams_out_of_loggers"),
    ("lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop", "on_advance_end", "after_each_batch"),
    ("lightning.pytorch.trainer.connectors.signal_connector", "_SignalConnector", "no_signal_handlers"),
    (
        "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop",
        "_broadcast_sigterm_tensor",
        "no_signal_handlers",
    ),
    ("lightning.pytorch.loops.fit_loop._FitLoop", "_combined_loader", "estimated_steps"),
    ("lightning.pytorch.strategies.launchers.subprocess_script", "_SubprocessScriptLauncher", "started_by_script"),
    ("lightning.pytorch.strategies.launchers.subprocess_script", "_launch_process_observer", "observe_processes"),
    ("lightning.pytorch.cli.LightningCLI", "_parse_ckpt_path", "CommandLineHooks"),
    ("lightning.pytorch.cli.LightningCLI", "_prepare_subcommand_parser", "CommandLineHooks"),
    ("lightning.pytorch.callbacks.RichProgressBar", "_get_train_description", "ProgressBarHooks"),
    ("lightning.pytorch.loggers.csv_logs.ExperimentWriter", "_check_log_dir_exists", "MetricsFileHooks"),
    ("lightning.pytorch.loggers.csv_logs.ExperimentWriter", "_rewrite_with_new_header", "MetricsFileHooks"),
    ("lightning.pytorch.loggers.CSVLogger", "_experiment", "lazy_experiment"),
    ("lightning.pytorch.loggers.WandbLogger", "_wandb_init", "drop_anonymous"),
    ("wandb.sdk.wandb_setup", "_singleton", "wandb_core"),
    ("wandb.sdk.wandb_setup._WandbSetup", "_connection", "wandb_core"),
    ("wandb.sdk.lib.service.service_connection.ServiceConnection", "_proc", "wandb_core"),
    ("wandb.sdk.lib.service.service_process.ServiceProcess", "_process", "wandb_core"),
    ("lightning.pytorch.core.LightningModule", "_compiler_ctx", "compiled_modules"),
    ("lightning.pytorch.LightningModule", "_current_fx_name", "HookNames"),
    ("torch.distributed.distributed_c10d", "_get_default_store", "default_store"),
    ("argparse.ArgumentParser", "_actions", "option_names"),
    ("argparse.ArgumentParser", "_actions", "set_help"),
    ("argparse", "_SubParsersAction", "option_names"),
    ("torch.nn.Module", "_compiled_call_impl", "compiled_modules"),
    ("torch._dynamo.eval_frame.OptimizedModule", "_orig_mod", "compiled_modules"),
    ("torch.amp.GradScaler", "_per_optimizer_states", "unscaled_by_step"),
    ("torch.amp.GradScaler", "_scale", "unscaled_by_step"),
)


# Optimizers and strategies


def skip_step_count(optimizer: Any) -> None:
    """Keeps the next step of a LightningOptimizer out of `global_step`.

    Under manual optimization Lightning counts the steps of all optimizers, in these two callbacks, which the loop sets
    again before every batch. There is no option to count those of one optimizer only.
    """
    optimizer._on_before_step = optimizer._on_after_step = _nothing


def _nothing() -> None:
    pass


def find_unused_parameters(strategy: Any) -> None:
    """Sets DDP's `find_unused_parameters` on a strategy that has been built already.

    A model can need it whatever the user's strategy is, and the Trainer has no hook for a model to say so.
    """
    strategy._ddp_kwargs["find_unused_parameters"] = True


def set_data_parallel_size(strategy: Any, size: int) -> None:
    """Sets the number of processes that a ModelParallelStrategy shards over; its "auto" is the number of nodes."""
    strategy._data_parallel_size = size


def unscaled_by_step(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Loss scale that is still on the gradients in `on_before_optimizer_step`, or None.

    With a fused optimizer the GradScaler leaves the scale on the gradients and the optimizer's step removes it. Only
    the scaler's private state tells whether they have been unscaled.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED:
        return None
    return scaler._scale


# Models


def keep_hparams_out_of_loggers(model: LightningModule) -> None:
    """Stops the Trainer from logging a model's hyperparameters, whose nested form the command line logs itself."""
    model._log_hyperparams = False


def compiled_modules(model: nn.Module) -> set[nn.Module]:
    """Modules that torch.compile runs: whole LightningModules, `module.compile()` and `torch.compile(module)`."""
    whole = getattr(model, "_compiler_ctx", None) is not None
    tops = [m for m in model.modules() if m._compiled_call_impl is not None or "_orig_mod" in m._modules]
    return {module for top in ([model] if whole else tops) for module in top.modules()}


class HookNames:
    """Mixin for `LightningModule`: notes the hook that runs without nn.Module's search for parameters.

    Lightning notes it forty times in a step. `nn.Module.__setattr__` takes some microseconds each time, together a few
    percent of the step of a small network.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


# Loops and processes


def estimated_steps(trainer: Trainer) -> int | float:
    """Length of a run in optimizer steps, for `configure_optimizers`.

    To find it, Lightning sets up the training data, and does not do so again when the loop starts: a resumed run would
    not load the state of its data loader, and train on other batches (Lightning's issue 20550). So the data is set up
    again, as there is no public way to load that state.
    """
    steps = trainer.estimated_stepping_batches
    if trainer.ckpt_path:
        trainer.fit_loop._combined_loader = None
    return steps


def after_each_batch(trainer: Trainer, call: Callable[[], None]) -> Callable[[], None]:
    """Calls a function after every training batch with its validation and logging; returns what removes it.

    There is no hook at this point, the only one at which a checkpoint resumes exactly.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    advance = loop.on_advance_end

    def on_advance_end(*args: Any) -> None:
        advance(*args)
        call()

    loop.on_advance_end = on_advance_end

    def remove() -> None:
        del loop.on_advance_end  # the class's own is visible again

    return remove


def no_signal_handlers(trainer: Trainer) -> None:
    """Keeps a Trainer from setting handlers of signals.

    Its handler of SIGTERM starts a collective, in which the processes that got no signal do not take part, and lets
    `validate` and the sanity check end with exit code 0. There is no option to turn it off. With several processes it
    also broadcasts before every batch whether there was a signal, and reads the answer from the device.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def started_by_script(trainer: Trainer) -> bool:
    """Whether Lightning starts the other processes of this machine itself, by running the script again."""
    launcher = trainer.strategy.launcher
    return isinstance(launcher, subprocess_script._SubprocessScriptLauncher) and not (
        launcher.cluster_environment.creates_processes_externally
    )


@contextmanager
def observe_processes(observer: Callable[[list[subprocess.Popen]], None]) -> Iterator[None]:
    """Replaces the observer that Lightning hands the processes it has started to; its own kills this process."""
    before = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = observer  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess_script._launch_process_observer = before


def default_store() -> Any:
    """The store at which the processes of a run have met. It outlives their connections, and nothing else names it."""
    return distributed_c10d._get_default_store()


# Loggers


def lazy_experiment(logger: Any, make: Callable[[], Any]) -> Any:
    """A CSVLogger's writer, made on first use by `make` instead of by the logger."""
    if logger._experiment is None:
        logger._experiment = make()
    return logger._experiment


def drop_anonymous(logger: Any) -> None:
    """Removes the argument `anonymous`, which Lightning always passes to wandb.init and wandb warns about."""
    logger._wandb_init.pop("anonymous", None)


def wandb_core() -> subprocess.Popen | None:
    """wandb's helper process, if there is one. wandb itself can only wait for its end, without a limit."""
    setup = getattr(sys.modules.get("wandb.sdk.wandb_setup"), "_singleton", None)
    service = getattr(getattr(setup, "_connection", None), "_proc", None)
    return getattr(service, "_process", None)


class MetricsFileHooks:
    """Mixin for `ExperimentWriter`: keeps a metrics.csv that exists, and rewrites it by `rewrite(rows, keys)`."""

    def _check_log_dir_exists(self) -> None:
        pass

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.rewrite_with_new_header()

    def rewrite_with_new_header(self) -> None:
        """Writes the file again when a row has a new column."""
        raise NotImplementedError


# Command line and progress bar


class CommandLineHooks:
    """Mixin for `LightningCLI`, which has no public hook at these two points.

    Calls `check_ckpt_path` instead of reading hyperparameters from `--ckpt_path`, and `add_arguments_to_command` when a
    command's parser is complete.
    """

    def _parse_ckpt_path(self) -> None:
        self.check_ckpt_path()

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]
        self.add_arguments_to_command(subcommand, parser)
        return parser

    def check_ckpt_path(self) -> None:
        """Called when the command line has been parsed."""

    def add_arguments_to_command(self, command: str, parser: Any) -> None:
        """Called for each command, to add options that the others do not have."""


class ProgressBarHooks:
    """Mixin for `RichProgressBar`: the text before the bar is `describe_epoch(epoch)`."""

    def _get_train_description(self, current_epoch: int) -> str:
        return self.describe_epoch(current_epoch)

    def describe_epoch(self, epoch: int) -> str:
        """Text before the bar, for the epoch counted from 0."""
        raise NotImplementedError


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Options of a parser and its subcommands, as they are typed."""
    names: list[str] = []
    for action in parser._actions:
        names += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            names += [name for command in (action.choices or {}).values() for name in option_names(command)]
    return [name for name in names if name.startswith("--")]


def set_help(parser: argparse.ArgumentParser, option: str, text: str) -> None:
    """Replaces the description of an option that a library has added to a parser."""
    for action in parser._actions:
        if option in action.option_strings:
            action.help = text
