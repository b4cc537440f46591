"""Keeps a metric's numbers in the precision they were made in, whatever happens to the model that owns it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class FixedPrecisionMetric(Metric):
    """A metric that follows its owner to another device, but not to another dtype.

    torchmetrics keeps the states' dtype under `.half()` and `.bfloat16()`, but not under `.to(torch.bfloat16)`, which
    is how Lightning's `precision="bf16-true"` converts a model; sums in bfloat16 are worthless. On Apple's GPUs (MPS),
    which have no float64, the states stay where they are.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(x: Tensor) -> Tensor:
            device = target_device(fn, x)
            return x if device.type == "mps" and x.dtype == torch.float64 else x.to(device)

        return super()._apply(move, exclude_state)

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Does nothing: the precision is part of the metric."""
        return self


def target_device(fn: Callable[[Tensor], Tensor], x: Tensor) -> torch.device:
    """Where `fn`, one of the functions that `nn.Module._apply` is given, would put the tensor `x`."""
    return fn(torch.empty(0, device=x.device)).device
