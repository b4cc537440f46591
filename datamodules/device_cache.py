"""Copies of the samples on the training device, from which batches are cut there.

A batch is then cut from them by index, and neither pinned nor copied. Its indices are drawn on the CPU as without the
copies, so the batches are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from zoo.datamodules.memory import in_words
from zoo.errors import UserError

CacheMode = Literal["auto", "memory", "disk", "device"]

#: "auto" copies to a CUDA device what takes at most this share of its free memory.
DEVICE_SHARE = 0.25

CPU = torch.device("cpu")


def free_device_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a CUDA device, or None for other devices, which do not say."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of torch's own pool
    return torch.cuda.mem_get_info(device)[0] + unused


def training_device(trainer: Trainer | None) -> torch.device:
    """Device of a Trainer's process; the CPU without a Trainer."""
    return CPU if trainer is None else trainer.strategy.root_device


def check_device(cache: CacheMode, trainer: Trainer | None) -> None:
    """Raises a `UserError` if the samples are to lie on the training device, and that is the CPU."""
    if cache == "device" and trainer is not None and training_device(trainer) == CPU:
        raise UserError("cache is device, but this run is on the CPU: use --trainer.accelerator gpu, or cache auto")


class DeviceCopies:
    """Tensors on the training device, each copied once. Pickling leaves the copies out."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # original and copy by the id of the original

    def __getstate__(self) -> dict[str, Any]:
        return {"_copies": {}}

    def clear(self) -> None:
        """Forgets the copies; their memory is free when no loader reads them any more."""
        self._copies.clear()

    def place(self, tensors: Sequence[Tensor], cache: CacheMode, trainer: Trainer | None, what: str) -> list[Tensor]:
        """The tensors where batches are cut from them: their copies on the training device, or themselves.

        Args:
            tensors: samples and what belongs to them.
            cache: with "device" they are copied; with "auto" if the device is a CUDA device with room enough.
            trainer: Trainer whose device it is; None for no copies.
            what: what the tensors are, in words.

        Raises:
            UserError: `cache` is "device", and they do not fit.
        """
        device = training_device(trainer)
        if device == CPU or cache not in ("auto", "device"):
            return list(tensors)
        new = [t for t in tensors if id(t) not in self._copies or self._copies[id(t)][1].device != device]
        if not self._fits(sum(t.nbytes for t in new), cache, device, what):
            return list(tensors)
        self._copies |= {id(t): (t, t.to(device, copy=True)) for t in new}
        return [self._copies[id(t)][1] for t in tensors]

    @staticmethod
    def _fits(size: int, cache: CacheMode, device: torch.device, what: str) -> bool:
        free = free_device_memory(device)
        if cache == "auto":
            return free is not None and size <= DEVICE_SHARE * free
        if free is not None and size > free:
            raise UserError(
                f"cache is device, but {what} takes {in_words(size)} and {device} has {in_words(free)} free; "
                "use cache auto"
            )
        return True
