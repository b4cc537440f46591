"""The command line: LightningCLI for fit, validate, test and predict, and the zoo's own sample and list.

Recipes are configuration files; a bare name that is no file in the working folder is taken from `zoo/configs/`, and
several stack. Whatever a user can put right is answered with one line and exit code 2.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from zoo.callbacks import PredictionWriter, ShortProgressBar, StopOnNonFinite, StopOnSignal
from zoo.catalog import catalog, did_you_mean
from zoo.checkpoints import check_checkpoint
from zoo.checks import check_match, check_port, check_trainer_options
from zoo.classifier import Classifier
from zoo.errors import NonFiniteError, UserError
from zoo.messages import as_user_error, explain, one_line, option_names
from zoo.pictures import unused_path
from zoo.processes import end_communication, ending_together
from zoo.recipes import resolve_recipes
from zoo.resume import Continued, LoggedSoFar, RunLock, StaysStopped, find_last
from zoo.tracking import RunFolders, RunOptions, WandbOptions, run_loggers

PROGRAM = "zoo"
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


class OneLineParser(LightningArgumentParser):
    """A parser that answers a mistake with one line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside another one's trial of types, which goes on with its message
            super().error(message, ex)
        raise UserError(explain(message, option_names(self)))


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder, and the same, nested, into the W&B run."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        # Values that the data gave the model by a link are not in it: the next run links them again.
        arguments = config["model"].setdefault("init_args", {})
        arguments.update({name: value for name, value in pl_module.hparams.items() if arguments.get(name) is None})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(config, allow_val_change=True)


class ZooCLI(LightningCLI):
    """LightningCLI with any model on any data, a folder for every run, and W&B."""

    def __init__(self, recipe: str, folders: RunFolders) -> None:
        self.recipe = recipe
        self.folders = folders
        self.continued: Continued | None = None
        super().__init__(
            save_config_callback=SaveConfig,
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Hyperparameters are plain values, so that a checkpoint loads where jsonargparse is not installed.
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(WandbOptions, "wandb")
        for name in ("input_shape", "num_classes"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for name, argument in {"tokenizer_description": "tokenizer", "output_length": "output_length"}.items():
            parser.link_arguments(f"data.{name}", f"model.init_args.{argument}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """The model is built from the configuration; the checkpoint's hyperparameters do not override it."""
        config = self.config[self.config.subcommand]
        path = config.get("ckpt_path")
        if path == "last" and self.config.subcommand != "fit":
            raise UserError(
                f"--ckpt_path last is for fit, which goes on with a run; for {self.config.subcommand}, name the file"
            )
        if path and path not in ("best", "last", "hpc", "registry") and not Path(path).is_file():
            raise UserError(f"--ckpt_path {path} is not a file")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Without --weights_only: a checkpoint is always read so that nothing in it is run."""
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.data is None and "input_shape" in config.model.init_args and not config.model.init_args.input_shape:
            raise UserError("no data is given: take a recipe that has some, such as --config gan.yaml, or --data NAME")
        if self.subcommand != "fit":
            self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        check_match(self.model, self.datamodule)
        if config.get("ckpt_path") == "last":
            self.continued = find_last(config.run.root, config.run.name or self.recipe, self._check_run)
            config.ckpt_path = str(self.continued.path) if self.continued else None
        elif config.get("ckpt_path") and Path(config.ckpt_path).is_file():
            check_checkpoint(config.ckpt_path, self.model)
        check_trainer_options(config.trainer)
        if config.trainer.logger in (None, True) and not config.trainer.fast_dev_run:
            training = self.subcommand == "fit"
            options = (config.run, config.wandb, self.recipe, self.folders, self.continued)
            kwargs["logger"] = run_loggers(*options) if training else False
        elif config.trainer.fast_dev_run:
            kwargs["logger"] = False
        if kwargs.get("logger", config.trainer.logger) is False:
            self.save_config_callback = None  # there is no folder for it
        given = config.trainer.callbacks or []
        callbacks = config.trainer.callbacks = list(given) if isinstance(given, list) else [given]
        if config.trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(ShortProgressBar())
        if self.subcommand == "predict" and not any(isinstance(c, BasePredictionWriter) for c in callbacks):
            callbacks.append(PredictionWriter())
        if self.subcommand == "fit":
            callbacks += [StopOnSignal(), LoggedSoFar(), StaysStopped()]
            if not any(isinstance(c, StopOnNonFinite) for c in callbacks):
                callbacks.append(StopOnNonFinite())
        if self.continued is not None:  # what was typed this time stands beside what was typed at first
            self.save_config_kwargs["config_filename"] = unused_path(self.continued.folder / "config.yaml").name
        # The loggers get the whole configuration, nested; the model's part of it need not lie flat beside it.
        self.model._log_hyperparams = False
        trainer = super().instantiate_trainer(**kwargs)
        check_port(trainer)
        return trainer

    def _check_run(self, path: Path) -> None:
        """Sees whether a checkpoint of another run of this name is of this model and this data."""
        check_checkpoint(path, self.model)
        config = path.parent.parent / "config.yaml"
        if not config.is_file() or self.config[self.subcommand].data is None:
            return
        data, here = yaml.safe_load(config.read_text()).get("data"), self.config[self.subcommand].data.class_path
        if data and data["class_path"] != here:
            raise UserError(f"its data is {data['class_path']}, not {here}")

    def _run_subcommand(self, subcommand: str) -> None:
        with ending_together(self.trainer):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        trainer = self.trainer
        if trainer.num_training_batches == 0:
            raise UserError(
                "there is not one training batch (on each device): use a smaller --data.batch_size, fewer "
                "--trainer.devices, or more of --trainer.limit_train_batches"
            )
        if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.log_dir or "")  # asked on every rank, since rank zero tells the others
        if not trainer.is_global_zero:
            return
        checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        best = next((c for c in checkpoints if c.monitor and c.best_model_path), None)
        path = next((p for c in checkpoints for p in (c.best_model_path, c.last_model_path) if p), "")
        rank_zero_info(f"Run finished after {trainer.global_step} steps; everything is in {folder}")
        for stopping in (c for c in trainer.callbacks if isinstance(c, EarlyStopping)):  # type: ignore[attr-defined]
            rank_zero_info(f"  {_why_it_ended(trainer, stopping)}")
        if best is not None and best.best_model_score is not None:
            rank_zero_info(
                f"  best {best.monitor}: {best.best_model_score.item():.4g} after epoch "
                f"{_epochs_in(best.best_model_path)}, in {_relative(best.best_model_path)}"
            )
        folders = (folder / "samples", folder / "attention")
        shown = [path for path in (*folders, *sorted(folder.glob("*.png"))) if path.exists()]
        if shown:
            rank_zero_info(f"  to look at: {', '.join(map(str, shown))}")
        if path and isinstance(self.model, Classifier):
            rank_zero_info(f"Next: python cli.py test --ckpt_path {_relative(path)}")
        if path and callable(getattr(self.model, "sample", None)):
            options = "--length 500" if callable(getattr(self.model, "stream", None)) else "--n 64 --out samples.png"
            rank_zero_info(f"Next: python cli.py sample --ckpt_path {_relative(path)} {options}")


def _silence_what_says_nothing() -> None:
    """Messages of libraries that no user of the zoo can act on."""
    for message in (
        ".*does not have many workers.*",  # the data is in memory: workers would only cost
        ".*treespec, LeafSpec.*",  # Lightning's use of torch
        "Using ModelCheckpoint with manual optimization.*",  # a checkpoint after a step is what anybody expects
        "Grad strides do not match.*",  # of a layer with one output, whose copy costs nothing
        "The dirpath has changed from.*",  # a run's folder may be moved
        "Checkpoint directory .* exists and is not empty.*",  # as it is where a run goes on
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "litlogger" not in record.getMessage())


def _why_it_ended(trainer: Trainer, stopping: EarlyStopping) -> str:
    """One line on whether early stopping ended the run, when, and why."""
    if stopping.stopping_reason == EarlyStoppingReason.NOT_STOPPED:
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


def _epochs_in(path: str) -> int:
    """The epoch, counted from one, in which a checkpoint was written."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"] + 1


def _relative(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _with_config_of_run(args: list[str]) -> list[str]:
    """For a checkpoint that is given without a configuration, the one that lies in its run's folder."""
    if args[0] == "fit" or any(a.split("=")[0] in ("--config", "-c", "--model") for a in args):
        return args
    for option, following in zip(args, [*args[1:], ""], strict=True):
        name, _, inline = option.partition("=")
        config = Path(inline or following).parent.parent / "config.yaml"
        if name == "--ckpt_path" and config.is_file():
            return [args[0], "--config", str(config), *args[1:]]
    return args


def run_trainer(args: list[str]) -> ZooCLI:
    """fit, validate, test and predict; returns the command line with its model and Trainer when all is done."""
    catalog()  # loads the plugins, so that their classes have short names
    args, recipe = resolve_recipes(_with_config_of_run(args))
    name = recipe or next((a.partition("=")[2] or "run" for a in args if a.startswith("--model=")), "run")
    folders = RunFolders()
    typed = sys.argv
    # Not as an argument: the processes of DDP are started by repeating what was typed.
    sys.argv = [typed[0], *args]
    try:
        return ZooCLI(name.rsplit(".", 1)[-1].lower(), folders)
    except Exception as error:
        mistake = as_user_error(error)
        # What was typed can be typed again; what a full disk has left of a run is not ours to remove.
        folders.discard(begun=mistake is None or isinstance(error, OSError))
        if mistake is None:
            raise
        raise mistake from error
    finally:
        sys.argv = typed
        RunLock.release()


def run_list(args: list[str]) -> None:
    """Prints what is in the zoo."""
    if args:
        raise UserError(f"list takes no arguments, not {' '.join(args)}")
    kind = None
    for entry in catalog():
        if entry.kind != kind:
            kind = entry.kind
            print(f"{kind}:")
        print(f"  {entry.name:<28} {entry.summary}")


def run_sample(args: list[str]) -> None:
    """Draws from a checkpoint."""
    from zoo.sampling import draw

    parser = OneLineParser(prog=f"{PROGRAM} sample", description="Draws samples from a generative model's checkpoint.")
    parser.add_function_arguments(draw)
    print(draw(**parser.parse_args(args).as_dict()))


def run_edit(args: list[str]) -> None:
    """Changes a picture by a checkpoint."""
    from zoo.editing import edit

    parser = OneLineParser(prog=f"{PROGRAM} edit", description="Changes a picture by a diffusion model's checkpoint.")
    parser.add_function_arguments(edit)
    print(edit(**parser.parse_args(args).as_dict()))


COMMANDS = {**dict.fromkeys(TRAINER_COMMANDS, run_trainer), "sample": run_sample, "edit": run_edit, "list": run_list}

HELP = f"""usage: {PROGRAM} COMMAND [options]

commands:
  fit        train:          {PROGRAM} fit --config gan.yaml
  validate   measure on the validation split
  test       measure on the test split
  predict    write predictions
  sample     draw from a generative model:  {PROGRAM} sample --ckpt_path FILE --n 64 --out grid.png
  edit       change a picture:  {PROGRAM} edit --ckpt_path FILE --task inpaint --image in.png --mask mask.png
  list       what is in the zoo

{PROGRAM} COMMAND --help names the options of a command."""


def main(args: Sequence[str] | None = None) -> None:
    """The program `zoo`, and `python cli.py`.

    Args:
        args: what was typed after the program's name.
    """
    typed = list(sys.argv[1:] if args is None else args)
    if not typed or typed[0] in ("-h", "--help"):
        print(HELP)
        return
    _silence_what_says_nothing()
    try:
        command = COMMANDS.get(typed[0])
        if command is None:
            raise UserError(f"there is no command {typed[0]}{did_you_mean(typed[0], COMMANDS)}")
        command(typed if command is run_trainer else typed[1:])
        end_communication()  # where others than Lightning have started the processes
    except NonFiniteError as error:
        _fail(str(error), code=1)
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None:
            raise
        _fail(str(mistake))


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"{PROGRAM}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
