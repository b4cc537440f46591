"""What a Trainer restores from a checkpoint beside the weights: checked against the Trainer's own objects before.

Lightning hands loops, callbacks, optimizers and schedulers whatever the file holds. Here each state must have the types
of the object's own, and paths become files in the run's own folder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from zoo.checkpoints.structure import TRAINING, check_like, check_structure
from zoo.errors import UserError, one_line, shown


def check_restorable(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Checks what a Trainer restores before it has optimizers, and confines the paths of ModelCheckpoint.

    Args:
        checkpoint: contents of the file; its callbacks' states are changed.
        trainer: Trainer that restores it, with its callbacks set up.

    Raises:
        UserError: a state is missing or damaged.
    """
    # A strategy that shards the model has loaded weights and optimizers already, and hands on the rest.
    sharded = trainer.strategy.restore_checkpoint_after_setup
    check_structure({"state_dict": {}, **checkpoint} if sharded else checkpoint)
    if trainer.state.fn == TrainerFn.FITTING:
        check_training_state({"optimizer_states": [], **checkpoint} if sharded else checkpoint)
    name, loop = {
        TrainerFn.FITTING: ("fit_loop", trainer.fit_loop),
        TrainerFn.VALIDATING: ("validate_loop", trainer.validate_loop),
        TrainerFn.TESTING: ("test_loop", trainer.test_loop),
        TrainerFn.PREDICTING: ("predict_loop", trainer.predict_loop),
    }[trainer.state.fn or TrainerFn.FITTING]
    if "loops" in checkpoint:
        _check_loop(f"loops.{name}", loop, checkpoint["loops"].get(name))
    plugin = trainer.precision_plugin
    if (state := checkpoint.get(type(plugin).__qualname__)) is not None:
        _try(type(plugin).__qualname__, plugin, state)
    states = checkpoint.setdefault("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        if not states.get(key):
            continue
        if isinstance(callback, ModelCheckpoint):
            states[key] = confine_paths(states[key], callback.dirpath)
        _try(f"the state of the callback {type(callback).__name__}", callback, states[key])


def check_training_state(checkpoint: Mapping[str, Any]) -> None:
    """Checks that a checkpoint holds the state of a training, and not weights alone.

    Raises:
        UserError: it holds weights alone.
    """
    if lacking := [name for name in TRAINING if name not in checkpoint]:
        raise UserError(f"it has no {lacking[0]}: it holds weights, with which no training can be resumed")


def confine_paths(state: Mapping[str, Any], folder: str | Path | None) -> dict[str, Any]:
    """State of a ModelCheckpoint whose checkpoints are files in a folder.

    Lightning deletes the checkpoints that a state names when there are better ones, wherever they are. The folder of a
    run may have been moved since; if the best checkpoint is not in it, the search for the best starts anew.

    Args:
        state: state in a checkpoint.
        folder: folder of the run's checkpoints; None if the run writes none.

    Raises:
        UserError: a path is no text, or a score no number.
    """

    def here(path: Any) -> str:
        if not isinstance(path, (str, type(None))):
            raise UserError(f"a path in the state of ModelCheckpoint is {shown(path)}")
        file = Path(folder or "") / Path(path or "").name
        return str(file) if path and folder and "\0" not in path and file.is_file() else ""

    scores = {name: state.get(name) for name in ("best_model_score", "current_score", "kth_value")}
    models = state.get("best_k_models", {})
    if not isinstance(models, Mapping):
        raise UserError(f"best_k_models in the state of ModelCheckpoint is {shown(models)}")
    for name, score in {**scores, **models}.items():
        if score is not None and not (isinstance(score, Tensor) and score.numel() == 1):
            raise UserError(f"{shown(name)} in the state of ModelCheckpoint is {shown(score)}, not a number")
    best = here(state.get("best_model_path"))
    kept = {here(path): score for path, score in models.items() if here(path)}
    confined = {
        **state,
        "dirpath": folder,
        "best_model_path": best,
        "last_model_path": here(state.get("last_model_path")),
        "best_k_models": kept,
        "kth_best_model_path": here(state.get("kth_best_model_path")),
    }
    if not best:
        confined |= {"best_model_score": None, "current_score": None, "best_k_models": {}, "kth_best_model_path": ""}
        confined.pop("kth_value", None)  # that of a new ModelCheckpoint is kept
    return confined


def check_optimizers(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Checks the states of optimizers and schedulers against those of the Trainer.

    Args:
        checkpoint: contents of the file; entries that a scheduler does not have are removed.
        trainer: Trainer with its optimizers.

    Raises:
        UserError: a state is of another optimizer or of other parameters, or damaged.
    """
    if trainer.strategy.lightning_restore_optimizer:
        states = checkpoint["optimizer_states"]
        if len(states) != len(trainer.optimizers):
            raise UserError(f"it has the states of {len(states)} optimizers, and this model {len(trainer.optimizers)}")
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            _check_optimizer(optimizer, state)
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for index, (scheduler, state) in enumerate(zip(schedulers, checkpoint["lr_schedulers"], strict=False)):
        own: Any = scheduler.state_dict()
        checkpoint["lr_schedulers"][index] = {name: value for name, value in state.items() if name in own}
        _try(f"the state of {type(scheduler).__name__}", scheduler, checkpoint["lr_schedulers"][index])


def _check_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Checks the saved state of one optimizer."""
    name = type(optimizer).__name__
    here, there = optimizer.param_groups, state["param_groups"]
    if [len(group["params"]) for group in here] != [len(group["params"]) for group in there]:
        raise UserError(f"its optimizer has other groups of parameters than this {name}: give the options of its run")
    for group, saved in zip(here, there, strict=True):
        if (group.keys() - saved.keys() and saved.keys() - group.keys()) or "lr" not in saved:
            raise UserError(f"it was trained with another optimizer than {name}: give the optimizer of its run")
        options = {option: float(value) if type(value) is int else value for option, value in group.items()}
        check_like({**saved, "params": []}, {**options, "params": []}, f"the optimizer {name} in it")
        expected = _state_after_a_step(optimizer, group)
        for parameter, key in zip(group["params"], saved["params"], strict=True):
            for entry, value in expected.items() if state["state"].get(key) else ():
                held = state["state"][key].get(entry)
                shape = parameter.shape if value.shape == PROBE else value.shape
                if not isinstance(held, Tensor) or held.shape != shape:
                    raise UserError(f"the state of {name} in it does not fit: {entry} has another shape")


PROBE = torch.Size((3, 2))


def _state_after_a_step(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors that an optimizer of torch keeps for a parameter of the shape PROBE; empty for other optimizers."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return {}
    probe = torch.zeros(PROBE, requires_grad=True)
    probe.grad = torch.zeros(PROBE)
    options = {name: value for name, value in group.items() if name not in ("params", "initial_lr", "capturable")}
    build: Any = type(optimizer)
    try:
        other = build([{**options, "params": [probe]}])
        other.step()
    except Exception:  # one that needs a closure, or sparse gradients
        return {}
    return {name: value for name, value in other.state[probe].items() if isinstance(value, Tensor)}


def _check_loop(where: str, loop: Any, state: Any) -> None:
    """Checks the state of a loop and its parts; a part that it lacks is skipped, as Lightning does."""
    own = loop.state_dict()
    check_like(state, own, where)
    for part in own.keys() & state.keys():
        check_like(state[part], own[part], f"{where}.{part}", complete=True)


def _try(where: str, target: Any, state: Any) -> None:
    """Loads a state into an object, as the Trainer will do again.

    Raises:
        UserError: its types are not those of the object's own state, or it cannot be loaded.
    """
    check_like(state, target.state_dict(), where)
    try:
        target.load_state_dict(copy.deepcopy(state))
    except UserError:
        raise
    except Exception as error:  # arbitrary values raise arbitrary exceptions
        reason = one_line(f"{type(error).__name__} {error}")[:100]
        raise UserError(f"{where} is damaged ({reason})") from error
