"""Networks in any precision, and everything around them at least in float32.

`trainer.precision` bf16-true, 16-true or 64-true converts all parameters and buffers of a model, and makes that dtype
the default of new tensors. A network then takes inputs of that dtype only, and half precision is too coarse for losses,
noise levels, statistics of the data and averages of weights. The models cast samples where they enter a network, and
widen what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn
from torch.func import functional_call

from zoo.errors import UserError

HALF = (torch.bfloat16, torch.float16)
#: Why models are not trained with weights in float16, and what to take instead.
FLOAT16 = (
    "trains weights in float16 without loss scaling, where gradients and the states of optimizers underflow to 0: use "
    "bf16-true, or 16-mixed on a GPU"
)


def check_precision(trainer: Trainer) -> None:
    """Raises a `UserError` for a precision in which no model of the zoo survives training."""
    plugin = trainer.precision_plugin
    if isinstance(plugin, HalfPrecision) and plugin.precision == "16-true":
        raise UserError(f"trainer.precision 16-true {FLOAT16}")


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU in place of Apple's GPUs (MPS), which lack float64."""
    return torch.device("cpu") if device.type == "mps" else device


def widen(x: Tensor) -> Tensor:
    """Floats in half precision as float32; other tensors as they are."""
    return x.float() if x.dtype in HALF else x


def dtype_of(network: nn.Module) -> torch.dtype | None:
    """Dtype of a network's first floating parameter, or None if it has no parameters."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), None)


def cast_to(network: nn.Module, x: Tensor) -> Tensor:
    """Floats in the dtype of a network's parameters; integers as they are."""
    return x.to(dtype_of(network)) if x.is_floating_point() else x


def keep_precision(fn: Callable[[Tensor], Tensor], tensors: Iterable[Tensor | None]) -> Callable[[Tensor], Tensor]:
    """A conversion, as handed to `nn.Module._apply`, that moves some tensors but keeps them out of half precision.

    Args:
        fn: conversion to another dtype or device.
        tensors: tensors that are at least in float32 and stay so; None is skipped.
    """
    kept = {id(tensor): tensor for tensor in tensors if tensor is not None}

    def convert(x: Tensor) -> Tensor:
        converted = fn(x)
        return x.to(converted.device) if id(x) in kept and converted.dtype in HALF else converted

    return convert


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products of float32 are not rounded to TF32 or bfloat16 inside the context, whatever the run allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_float32(network: nn.Module) -> Callable[..., Any]:
    """A network as a function that computes in float32, through which gradients reach weights in half precision.

    Args:
        network: network; one whose weights are wider, or in shards, is returned as it is.
    """
    weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    if dtype_of(network) not in HALF or any(hasattr(weight, "full_tensor") for weight in weights.values()):
        return network
    wide = {name: widen(weight) for name, weight in weights.items()}

    def run(*inputs: Any) -> Any:
        output = functional_call(network, wide, inputs)
        with torch.no_grad():  # running statistics have been updated in the copies
            for name, buffer in network.named_buffers():
                buffer.copy_(wide[name])
        return output

    return run
