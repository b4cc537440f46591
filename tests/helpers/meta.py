"""A device without data, on which a run shows where the CPU would wait for a GPU.

Tensors lie on torch's device `meta`, which computes shapes only. A value that is read, or copied to the CPU, is counted
and replaced by one: on a GPU each of these waits until everything before it is done.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class NoData(CPUAccelerator):
    """Accelerator of the device `meta`."""

    def setup_device(self, device: torch.device) -> None:
        pass


@dataclass
class Step:
    """What happened in a training step, from the arrival of its batch on.

    Attributes:
        reads: values read from the device, by operator.
        uploads: shapes of tensors copied to the device.
        operators: calls by operator.
    """

    reads: Counter[str] = field(default_factory=Counter)
    uploads: list[tuple[int, ...]] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)


class CountedTransfers(TorchDispatchMode):
    """Counts operators, and what passes between the CPU and the device `meta`, in `step` inside the context.

    Args:
        value: value in place of all that is read.
    """

    def __init__(self, value: int = 1) -> None:
        super().__init__()
        self.value = value
        self.step = Step()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        self.step.operators[name] += 1
        source = args[1] if name == "aten::copy_" else args[0] if args else None
        if not isinstance(source, Tensor):
            return func(*args, **kwargs)
        target = args[0].device if name == "aten::copy_" else torch.device(kwargs.get("device") or source.device)
        if name in ("aten::_to_copy", "aten::copy_") and source.device != META and target == META:
            self.step.uploads.append(tuple(source.shape))
        if source.device == META and name == "aten::_local_scalar_dense":
            self.step.reads[name] += 1
            return float(self.value) if source.is_floating_point() else self.value
        if source.device == META and name in ("aten::_to_copy", "aten::copy_") and target != META:
            self.step.reads[name] += 1
            if name == "aten::copy_":
                return args[0].fill_(self.value)
            return torch.full(source.shape, self.value, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)


class Recorder(Callback):
    """Keeps the counts of each training step, and of each batch of validation.

    Args:
        counted: mode that counts; it is on while the Trainer runs.
    """

    def __init__(self, counted: CountedTransfers) -> None:
        self.counted = counted
        self.steps: list[Step] = []
        self.validation: list[Step] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(self._take())

    def on_validation_batch_start(self, *_: Any) -> None:
        self._take()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validation.append(self._take())

    def _take(self) -> Step:
        step, self.counted.step = self.counted.step, Step()
        return step


def fit_without_data(model: Any, data: Any, batches: int, **options: Any) -> Recorder:
    """Trains on the device `meta`; returns what happened in each step. What precedes the first belongs to it."""
    limits = {"max_epochs": 1, "limit_train_batches": batches, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    recorder = Recorder(CountedTransfers())
    callbacks = [*options.pop("callbacks", []), recorder]
    strategy = SingleDeviceStrategy(META, accelerator=NoData())
    trainer = Trainer(strategy=strategy, callbacks=callbacks, **(QUIET | limits | options))
    with mock.patch("torch.autocast", return_value=nullcontext()), recorder.counted:  # it refuses this device
        trainer.fit(model, datamodule=data)
    return recorder
