"""What only the program that trained knows of a run: sizes of model and data, hardware, the chosen checkpoint."""

from __future__ import annotations

import inspect
import os
import platform
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from zoo.callbacks.run_folder import best_checkpoint, checkpoint_path
from zoo.checkpoints.format import versions
from zoo.contracts import data_of


def collect_facts(trainer: Trainer, model: LightningModule, folder: Path) -> dict[str, Any]:
    """Facts of a run at its end, as plain values that JSON can hold.

    Args:
        trainer: Trainer at the end of `fit`.
        model: its model.
        folder: folder of the run, to which the path of the checkpoint is relative, so that it may be moved.
    """
    best, path = best_checkpoint(trainer), checkpoint_path(trainer)
    checkpoint: dict[str, Any] = {"file": _relative(Path(path), folder)} if path else {}
    if best is not None and best.best_model_score is not None:
        checkpoint |= {"metric": best.monitor, "mode": best.mode, "value": float(best.best_model_score)}
    return {
        "model": _describe_model(model),
        "data": _describe_data(trainer),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "checkpoint": checkpoint,
        "hardware": _describe_hardware(trainer, model),
        "versions": dict(versions()),
    }


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _describe_model(model: LightningModule) -> dict[str, Any]:
    sizes = {name: _count(child) for name, child in model.named_children()}
    parts = [[name, type(child).__name__, sizes[name]] for name, child in model.named_children() if sizes[name]]
    return {
        **_class(model),
        "input_shape": list(getattr(model, "input_shape", None) or ()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parts": parts,
    }


def _describe_data(trainer: Trainer) -> dict[str, Any]:
    data = data_of(trainer)
    loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
    sizes = {name: size for name, loader in loaders.items() if (size := _size(loader)) is not None}
    batch_size = getattr(getattr(loaders["train"], "batch_sampler", None), "batch_size", None)
    return {
        **(_class(data) if data is not None else {}),
        "num_classes": getattr(data, "num_classes", None),
        "batch_size": batch_size,
        **sizes,
    }


def _class(thing: object) -> dict[str, str]:
    """Import path of the class of a model or of data, and the first line of its docstring."""
    cls = type(thing)
    return {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "summary": (inspect.getdoc(cls) or "").split("\n")[0],
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(loader: Any) -> int | None:
    """Number of different samples of one loader; None if it is not known."""
    dataset = getattr(loader, "dataset", None)
    found = getattr(dataset, "samples", None)
    if isinstance(found, int):
        return found
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:  # a stream, or several loaders
        return None


def _describe_hardware(trainer: Trainer, model: LightningModule) -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": trainer.num_devices * trainer.num_nodes,
        "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator"),
        "strategy": type(trainer.strategy).__name__.removesuffix("Strategy"),
        "precision": str(trainer.precision),
    }
    if trainer.strategy.root_device.type == "cuda":
        device = trainer.strategy.root_device
        found["device"] = torch.cuda.get_device_name(device)
        found["device_memory"] = torch.cuda.max_memory_allocated(device)  # bytes, at most at one time
    return found


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
