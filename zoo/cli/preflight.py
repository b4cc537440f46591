"""Checks of a run as a whole, once its parts are built and before anything is written."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from zoo.cli.program import program
from zoo.contracts import Tokens, check_condition, is_conditional, offers
from zoo.errors import UserError, as_word, check_at_least
from zoo.models.precision import FLOAT16


def check_match(model: LightningModule, data: Any) -> None:
    """Raises a `UserError` if a model of tokens is given images or points, or the reverse, or lacks classes to draw by.

    Models and data modules declare by `zoo.contracts.Tokens` which of the two they are for; others are not checked.
    """
    if is_conditional(model):
        check_condition(True, model.num_classes)
    if not (offers(model, Tokens) and offers(data, Tokens)) or model.tokens == data.tokens:
        return
    kinds = {True: "tokens", False: "images or points"}
    model_name, data_name = type(model).__name__, type(data).__name__
    raise UserError(
        f"{model_name} is for {kinds[model.tokens]}, and {data_name} has {kinds[data.tokens]}: take another --model or "
        "--data (the command list names them)"
    )


def check_trained(command: str, model: LightningModule, newest: Path | None) -> None:
    """Raises a `UserError` for a model that is measured without a checkpoint: its weights would be random.

    Args:
        command: validate, test or predict.
        model: model, as it has been built. One without parameters is not refused.
        newest: newest checkpoint of the recipe, which the message names; None if there is none.
    """
    if next(model.parameters(), None) is None:
        return
    run = f"{program()} fit"
    way = f"--ckpt_path {as_word(newest)}" if newest else f"a checkpoint by --ckpt_path; {run} trains one"
    raise UserError(f"{command} without a checkpoint measures a {type(model).__name__} of random weights: give {way}")


def check_trainer_options(options: Any, model: LightningModule) -> None:
    """Raises a `UserError` for values that the Trainer accepts and fails on later, or that the model does not support.

    Args:
        options: arguments of the Trainer, as attributes.
        model: model to be trained.
    """
    if options.val_check_interval == 0:
        raise UserError("trainer.val_check_interval is 0; to leave out validation, use --trainer.limit_val_batches 0")
    counts = ("log_every_n_steps", "reload_dataloaders_every_n_epochs", "num_nodes")
    check_at_least(0, **{f"trainer.{name}": options.get(name) for name in counts})
    if not model.automatic_optimization:
        for name, default in (("accumulate_grad_batches", 1), ("gradient_clip_val", None)):
            if options.get(name) not in (default, None):
                raise UserError(
                    f"trainer.{name} does not work with {type(model).__name__}, which optimizes manually; "
                    f"use --model.{name}"
                )


def check_precision_option(command: str, precision: str | int | None) -> None:
    """Raises a `UserError` for a precision that needs a package that is missing, or in which no model trains.

    Args:
        command: fit, validate, test or predict.
        precision: the Trainer's option of this name.
    """
    if str(precision).startswith("transformer-engine") and find_spec("transformer_engine") is None:
        raise UserError(
            f"trainer.precision {precision} needs NVIDIA's transformer_engine, which is not installed (pip install "
            "transformer_engine[pytorch], for GPUs with 8-bit floats): use bf16-mixed"
        )
    if precision == "16-true" and command == "fit":
        raise UserError(f"trainer.precision {precision} {FLOAT16}")


def check_port(trainer: Trainer) -> None:
    """Raises a `UserError` if the port at which the processes of a run are to meet is in use."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment) or "MASTER_PORT" not in os.environ:
        return
    if environment.creates_processes_externally or environment.node_rank():
        return  # rank 0 has checked it
    port = os.environ["MASTER_PORT"]
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", int(port)))
    except (OSError, ValueError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a port number"
        raise UserError(
            f"the processes of this run cannot meet at MASTER_PORT {port} ({why}); unset MASTER_PORT, or set it to a "
            "free port"
        ) from error
