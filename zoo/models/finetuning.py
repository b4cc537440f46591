"""Fine-tuning of a classifier: its backbone, weights to start from, and Lightning's finetuning callbacks."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from zoo.checkpoints.pretrained import is_pretrained
from zoo.checkpoints.reading import read_checkpoint
from zoo.contracts import SplitLabels, data_of, offers
from zoo.errors import UserError
from zoo.optim.unfreezing import adopt_unfrozen
from zoo.registry import trained_folders


def find_backbone(network: nn.Module) -> nn.Module:
    """A network without its last layer: its attribute `backbone`, or all its modules but `head`.

    Raises:
        UserError: it has neither of the two.
    """
    backbone = getattr(network, "backbone", None)
    if isinstance(backbone, nn.Module):
        return backbone
    if isinstance(getattr(network, "head", None), nn.Module):
        return nn.ModuleList(child for name, child in network.named_children() if name != "head")
    raise UserError(
        f"the network {type(network).__name__} has no backbone to freeze: take TorchvisionResNet or TimmNetwork, or "
        "give your own network a module backbone or head"
    )


def load_initial_weights(network: nn.Module, path: str, num_classes: int) -> None:
    """Copies the weights of the network in a checkpoint, those of its moving average if it has one.

    The last layer is left as it is if the checkpoint's has another number of classes.

    Args:
        network: network of the same class and options.
        path: path to the checkpoint or to the folder of a saved model, or name of a trained model of the zoo.
        num_classes: number of classes of `network`.

    Raises:
        UserError: there is no such model, it is not safe to load, or it holds another network.
    """
    source = Path(path) if Path(path).exists() else trained_folders().get(path, Path(path))
    if not (source.is_file() or is_pretrained(source)):
        raise UserError(
            f"init_from {path} is neither a checkpoint, the folder of a saved model nor a trained model of the zoo; "
            "null starts from the network's own initial weights"
        )
    checkpoint = read_checkpoint(source)
    state, own = checkpoint["state_dict"], network.state_dict()
    prefix = "ema.network." if any(name.startswith("ema.network.") for name in state) else "network."
    given = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    classes = (checkpoint.get("hyper_parameters") or {}).get("num_classes")
    if problem := next((name for name in [*own, *given] if name not in own or name not in given), None):
        where = "the checkpoint" if problem in given else "the network"
        raise UserError(
            f"init_from {path} does not hold a {type(network).__name__} with these options: only {where} has {problem}"
        )
    for name, value in own.items():
        there, here = tuple(given[name].shape), tuple(value.shape)
        if there == here:
            continue
        if (there[:1], here[:1], there[1:]) != ((classes,), (num_classes,), here[1:]):
            raise UserError(
                f"init_from {path} does not hold a {type(network).__name__} with these options: {name} is "
                f"{there} in it and {here} here"
            )
        given[name] = value
    network.load_state_dict(given)


def balanced_weights(trainer: Trainer, num_classes: int) -> Tensor:
    """Weights n / (k n_c) of k classes with n_c of n training samples each, (k,), as scikit-learn's "balanced".

    Args:
        trainer: Trainer whose data module offers `zoo.contracts.SplitLabels`.
        num_classes: number of classes k.

    Raises:
        UserError: the data does not tell its labels, or a class has no training sample.
    """
    data = data_of(trainer)
    if not offers(data, SplitLabels):
        name = "data without a data module" if data is None else type(data).__name__
        raise UserError(
            f"class_weights balanced needs the labels of the training split, which {name} does not give (a method "
            "labels(split)): give a list of weights"
        )
    counts = torch.bincount(data.labels("train"), minlength=num_classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise UserError(
            f"class_weights balanced: class {empty[0]} has no training sample; give a list of weights, or use a "
            "smaller data.val_size"
        )
    return counts.sum() / (num_classes * counts)


def finetuning_callbacks(trainer: Trainer) -> list[str]:
    """Names of the callbacks that freeze and unfreeze parameters."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [type(callback).__name__ for callback in callbacks if isinstance(callback, BaseFinetuning)]


def check_finetuning(trainer: Trainer) -> None:
    """Raises a `UserError` if a finetuning callback meets a strategy that cannot unfreeze parameters."""
    names = finetuning_callbacks(trainer)
    if names and isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError(
            f"{names[0]} does not work with FSDP, which cannot unfreeze parameters in mid-run; for several devices use "
            "--config ddp.yaml"
        )


def follow_unfreezing(module: LightningModule, network: nn.Module, layer_decay: float, built: int) -> None:
    """Makes parameters that a callback has unfrozen train like the others; call it when they can have changed.

    Three things that Lightning's callbacks leave open: groups and schedule (`adopt_unfrozen`), the parameters that a
    resumed run has frozen again, and DDP, which averages the gradients only of the parameters that required one when
    it wrapped the model.

    Args:
        module: model that is trained.
        network: its network.
        layer_decay: ratio of the learning rates of neighboring layers.
        built: number of parameter groups with which the optimizer was built.

    Raises:
        UserError: the learning-rate schedule cannot take new parameters.
    """
    trainer = module.trainer
    names = finetuning_callbacks(trainer)
    if not names:
        return
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    scheduler = schedules[0] if schedules else None
    if scheduler is not None and not isinstance(scheduler, LambdaLR):
        raise UserError(
            f"{names[0]} adds parameters in mid-run, which the schedule {type(scheduler).__name__} cannot take: use "
            "zoo.optim.WarmupDecay, another LambdaLR, or none (lr_scheduler null)"
        )
    unfrozen = adopt_unfrozen(trainer.optimizers[0], scheduler, network, layer_decay, built)
    if unfrozen and isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model = module
        gc.collect()  # the old wrapper ends, and with it its hooks on the parameters
        trainer.strategy.configure_ddp()
