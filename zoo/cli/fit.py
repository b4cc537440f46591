"""The commands fit, validate, test and predict: LightningCLI with any model on any data.

Recipes are configuration files. A bare name that is no file in the working folder is looked up in `zoo/configs/`;
several recipes are stacked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from zoo._lightning import CommandLineHooks, keep_hparams_out_of_loggers, set_help
from zoo.callbacks import RunReport
from zoo.checkpoints.reading import check_checkpoint
from zoo.checkpoints.resume import ResumePoint, find_last, newest_checkpoint
from zoo.cli.defaults import (
    MATMUL_HELP,
    REPORT_HELP,
    THREADS_HELP,
    MatmulPrecision,
    NoProfiler,
    Threads,
    allow_cheap_checks_for_gpus,
    as_list,
    default_callbacks,
    default_plugins,
    set_matmul_precision,
    set_threads,
    starts_on_all_devices,
    with_prediction_writer,
)
from zoo.cli.loggers import DEFAULT_LOGGERS, has_wandb, loggers_of_evaluation, loggers_of_run
from zoo.cli.messages import as_user_error
from zoo.cli.options import DEVICES_HELP, OUT_HELP, add_overwrite
from zoo.cli.parser import OneLineParser
from zoo.cli.preflight import check_match, check_port, check_precision_option, check_trained, check_trainer_options
from zoo.cli.program import program, wandb_program
from zoo.cli.recipes import is_given, resolve_recipes, with_config_of_run
from zoo.cli.resuming import CONFIG, check_resumable, difference, reported_changes
from zoo.cli.summary import describe_run, print_summary
from zoo.contracts import SamplePaths, offers
from zoo.distributed.launching import end_communication, ending_together
from zoo.distributed.signals import Stopped
from zoo.errors import UserError
from zoo.files import atomic_write, unused_path
from zoo.registry import entries, load_all
from zoo.tracking.evaluation import loggers_of_test
from zoo.tracking.run import is_rank_0, open_run
from zoo.tracking.run_folders import RunFolders, RunLock, RunOptions
from zoo.tracking.wandb import WandbOptions
from zoo.tracking.wandb_process import STOPPED_LIMIT, end_helper, finish_run


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder, and the same, nested, into the W&B run.

    Args:
        parser: parser of the command.
        config: parsed options.
        path: path to the file, on rank 0.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, path: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)  # Lightning would not write it atomically
        self.path = path

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        if not config.get("ckpt_path"):  # it would replace the one that is typed before the name of this file
            config.pop("ckpt_path", None)
        text = self.parser.dump(config, skip_unset=False)
        with atomic_write(self.path, "w", encoding="utf-8") as file:
            file.write(text)
        config = yaml.safe_load(text)
        # Values linked from the data are not part of the configuration; a repeated run links them again.
        arguments = config["model"].setdefault("init_args", {})
        arguments.update({name: value for name, value in pl_module.hparams.items() if arguments.get(name) is None})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(config, allow_val_change=True)


class ZooCLI(CommandLineHooks, LightningCLI):
    """LightningCLI with a folder for every run, resuming, and Weights & Biases.

    Args:
        recipe: name of the run if the user gives none.
        folders: creates the run's folder.
    """

    def __init__(self, recipe: str, folders: RunFolders) -> None:
        self.recipe = recipe
        self.folders = folders
        self.loggers_given: Any = None
        self.resumed: ResumePoint | None = None
        super().__init__(
            parser_kwargs={"prog": program()},
            trainer_defaults={"logger": DEFAULT_LOGGERS, "devices": 1},
            save_config_callback=SaveConfig,
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Hyperparameters are plain values, so that a checkpoint loads without jsonargparse.
            load_from_checkpoint_support=False,
        )

    # Parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(WandbOptions, "wandb")
        parser.add_argument("--matmul_precision", type=MatmulPrecision, default="auto", help=MATMUL_HELP)
        parser.add_argument("--threads", type=Threads, default="auto", help=THREADS_HELP)
        parser.add_argument("--report", type=bool, default=True, help=REPORT_HELP)
        for name in ("input_shape", "num_classes"):
            find = partial(_declared, name)
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=find, apply_on="instantiate")
        for name, argument in {"tokenizer_description": "tokenizer", "output_length": "output_length"}.items():
            parser.link_arguments(f"data.{name}", f"model.init_args.{argument}", apply_on="instantiate")

    def add_arguments_to_command(self, command: str, parser: Any) -> None:
        """Adds the file that `predict` writes, and describes the default of the devices."""
        set_help(parser, "--trainer.devices", DEVICES_HELP)
        if command == "predict":
            parser.add_argument("--out", type=str | None, help=OUT_HELP)
            add_overwrite(parser)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command that is typed, as each parser takes time; without --weights_only, which is always true."""
        commands = LightningCLI.subcommands()
        typed = [name for name in sys.argv[1:2] if name in commands] or list(commands)
        return {name: {*commands[name], "weights_only"} for name in typed}

    def check_ckpt_path(self) -> None:
        """Checks that the file exists. The model is built from the configuration, not from the file."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path == "last" and self.config.subcommand != "fit":
            raise UserError(
                f"--ckpt_path last is for fit, which resumes a run; for {self.config.subcommand}, name the file"
            )
        # Lightning's other words are not for runs in folders of their own: best, hpc, registry.
        if path is not None and path != "last" and not Path(path).is_file():
            raise UserError(f"--ckpt_path {path or repr(path)} is not a file")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.data is None and "input_shape" in config.model.init_args and not config.model.init_args.input_shape:
            raise UserError("no data is given: take a recipe that has some, such as --config gan.yaml, or --data NAME")
        if self.subcommand != "fit":
            self.save_config_callback = None
        if starts_on_all_devices(config.trainer.strategy) and not is_given("trainer", "devices", sys.argv[1:]):
            config.trainer.devices = "auto"
            rank_zero_info("Running on all devices of the machine; for fewer, give --trainer.devices")
        set_threads(config.threads)
        # Loggers are built in the run's folder, which exists when model and data have been built.
        self.loggers_given, config.trainer.logger = config.trainer.logger, None

    # Building the Trainer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        self.config[self.subcommand].trainer.logger = self.loggers_given
        check_match(self.model, self.datamodule)
        self._find_checkpoint(config)
        check_trainer_options(config.trainer, self.model)
        check_precision_option(str(self.subcommand), config.trainer.precision)
        kwargs |= self.loggers_and_folder(config)
        callbacks = as_list(config.trainer.callbacks)
        if self.subcommand == "predict":
            callbacks = with_prediction_writer(callbacks, config.out, config.overwrite)
        bar = config.trainer.enable_progress_bar is not False
        summary = config.trainer.enable_model_summary is not False and not config.trainer.barebones
        kwargs["enable_model_summary"] = False  # it is one of the callbacks
        kwargs["profiler"] = config.trainer.profiler or NoProfiler()
        report = self._report() if config.report else None
        added = default_callbacks(str(self.subcommand), callbacks, bar, summary, self.model, config.threads, report)
        config.trainer.callbacks = [*callbacks, *added]
        plugins = as_list(config.trainer.plugins)
        config.trainer.plugins = [*plugins, *default_plugins(plugins)]
        keep_hparams_out_of_loggers(self.model)
        allow_cheap_checks_for_gpus()
        trainer = super().instantiate_trainer(**kwargs)
        set_matmul_precision(config.matmul_precision, trainer)
        check_port(trainer)
        return trainer

    def loggers_and_folder(self, config: Any) -> dict[str, Any]:
        """Arguments of the Trainer: the loggers, and the folder of the run, which Lightning uses if there are none."""
        if config.trainer.fast_dev_run:
            self.save_config_callback = None
            return {"logger": False}
        if self.subcommand != "fit":
            # An evaluation does not have the loggers of the run that the configuration is of.
            typed = any(word.startswith("--trainer.logger") for word in sys.argv)
            given = self.loggers_given if typed else None
            of_run = loggers_of_test(config.ckpt_path, config.wandb) if self._logs_test(given) else []
            return {"logger": [*of_run, *loggers_of_evaluation(given)] or False}
        run = open_run(config.run, self.recipe, self.folders, self.resumed)
        # Each start of a run has a file of its own; the first is compared when the run is resumed.
        self.save_config_kwargs["path"] = unused_path(run.folder / CONFIG)
        folder = config.trainer.default_root_dir or run.folder
        return {"logger": loggers_of_run(self.loggers_given, run, config.wandb), "default_root_dir": folder}

    def _report(self) -> RunReport:
        path = self.save_config_kwargs.get("path", Path(CONFIG))
        return RunReport(program=program(), describe=partial(describe_run, words=sys.argv[1:], config=path))

    def _logs_test(self, given: Any) -> bool:
        """Whether a test is logged into the Weights & Biases run of its checkpoint."""
        return self.subcommand == "test" and has_wandb(given)

    def _find_checkpoint(self, config: Any) -> None:
        """Replaces `--ckpt_path last` by the newest checkpoint of the run; checks that one given by path fits."""
        name = config.run.name or self.recipe
        if config.ckpt_path == "last":
            self.resumed = self._find_last(config.run.root, name)
            config.ckpt_path = str(self.resumed.path) if self.resumed else None
            # Repeating the run by its config.yaml does not resume another one.
            self.config[self.subcommand].ckpt_path = None
        elif config.ckpt_path:
            check_checkpoint(config.ckpt_path, self.model, self.datamodule, self.subcommand == "fit")
        elif self.subcommand != "fit":
            check_trained(str(self.subcommand), self.model, newest_checkpoint(config.run.root, name))

    def _find_last(self, root: str, name: str) -> ResumePoint | None:
        """The checkpoint from which a run is resumed; its folder is locked by rank 0."""
        options = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))[self.subcommand]
        locks = (RunLock.take, RunLock.release) if is_rank_0() else ()
        check = partial(check_resumable, model=self.model, data=self.datamodule)
        point = find_last(root, name, partial(difference, options), check, *locks)
        for change in reported_changes(options, point.folder) if point else ():
            rank_zero_info(f"  changed: {change}")
        return point

    # Running: LightningCLI calls the method named like the command, if there is one, instead of the Trainer's.

    def fit(self, **kwargs: Any) -> None:
        with ending_together(self.trainer):
            self.trainer.fit(**kwargs, weights_only=True)
            if self.trainer.num_training_batches == 0:
                raise UserError(
                    "there is not one training batch (on each device): use a smaller --data.batch_size, fewer "
                    "--trainer.devices, or more of --trainer.limit_train_batches"
                )
            self.summarize()

    def summarize(self) -> None:
        """Called on all ranks when training has ended."""
        print_summary(self.trainer, self.model)

    def validate(self, **kwargs: Any) -> None:
        with ending_together(self.trainer):
            self.trainer.validate(**kwargs, weights_only=True)

    def test(self, **kwargs: Any) -> None:
        with ending_together(self.trainer):
            self.trainer.test(**kwargs, weights_only=True)

    def predict(self, **kwargs: Any) -> None:
        if offers(self.datamodule, SamplePaths):
            rank_zero_info(
                "predict reads one split of the data; predict --images FOLDER reads all pictures of a folder"
            )
        with ending_together(self.trainer):
            self.trainer.predict(**kwargs, weights_only=True)


def resolve_arguments(args: list[str]) -> tuple[list[str], str]:
    """Replaces names of recipes and classes by paths.

    Args:
        args: command and its options.

    Returns:
        Arguments for the parser, and the name of the run if the user gives none.
    """
    load_all()  # so that short names of classes are known
    args, recipe = resolve_recipes(with_config_of_run(args))
    args = with_import_paths(args)
    name = recipe or _model_name(args) or "run"
    return args, name.rsplit(".", 1)[-1].lower()


def run_trainer(args: list[str], make: Callable[[str, RunFolders], ZooCLI] = ZooCLI) -> ZooCLI:
    """Runs fit, validate, test or predict.

    Args:
        args: command and its options.
        make: builds the command line, which parses `sys.argv` and runs the command.

    Returns:
        The finished command line, with its model and Trainer.
    """
    args, name = resolve_arguments(args)
    folders = RunFolders()
    typed = sys.argv
    # Not passed as an argument: DDP starts its processes by repeating sys.argv.
    sys.argv = [typed[0], *args]
    try:
        return make(name, folders)
    except Stopped as stop:
        finish_run(stop.number + 128, STOPPED_LIMIT)
        folders.discard()  # unless training has begun
        raise
    except Exception as error:
        mistake = as_user_error(error)
        if isinstance(error, OSError) and (removed := RunLock.removed()):
            mistake = UserError(f"{removed} was removed while the run was writing to it; start the run again")
        # After a mistake nothing is kept; what a full disk has left of a run is kept.
        folders.discard(keep_metrics=mistake is None or isinstance(error, OSError))
        if mistake is None:
            raise
        raise mistake from error
    finally:
        sys.argv = typed
        RunLock.release()


def _declared(name: str, data: Any) -> Any:
    """Attribute of a data module from which the model is built."""
    value = getattr(data, name, None)
    if value is None and data is not None:
        raise UserError(
            f"{type(data).__name__} has no attribute {name}, from which the model is built: set it on the data module, "
            + ("the shape of a sample" if name == "input_shape" else "0 for data without labels")
        )
    return value


def with_import_paths(args: list[str]) -> list[str]:
    """Replaces names of the zoo after --model and --data by import paths, which no other class can be confused with."""
    known = {"--model": "models", "--data": "data"}
    paths = {(option, entry.name): entry.import_path for option, kind in known.items() for entry in entries(kind)}
    resolved = list(args)
    for index, argument in enumerate(args):
        option, equals, inline = argument.partition("=")
        if equals:
            resolved[index] = f"{option}={paths.get((option, inline), inline)}"
        elif index:
            resolved[index] = paths.get((args[index - 1], argument), argument)
    return resolved


def _model_name(args: list[str]) -> str:
    """Model given by --model NAME or --model=NAME; empty if there is none."""
    for option, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if name == "--model":
            return value or following
    return ""


def run_command(args: list[str]) -> None:
    """Runs fit, validate, test or predict, and ends Weights & Biases and the communication of processes."""
    try:
        cli = run_trainer(args)
        finish_run(limit=cli.config[cli.subcommand].wandb.finish_limit, program=wandb_program())
    finally:
        end_helper()
    end_communication()
