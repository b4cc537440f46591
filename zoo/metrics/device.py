"""Metrics that move to another device, but keep their precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


class FixedPrecisionMetric(Metric):
    """Metric whose states move to another device with the model, but are not converted to another dtype.

    torchmetrics keeps the states' dtype in `.half()` and `.bfloat16()`, but not in `.to(torch.bfloat16)`, by which
    Lightning's `precision="bf16-true"` converts a model; bfloat16 is too coarse for sums. Float64 states are not moved
    to Apple's GPUs (MPS), which lack float64.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(x: Tensor) -> Tensor:
            device = target_device(fn, x)
            return x if device.type == "mps" and x.dtype == torch.float64 else x.to(device)

        return super()._apply(move, exclude_state)

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Does nothing, because the precision is fixed."""
        return self


class Mean(FixedPrecisionMetric, MeanMetric):
    """Mean of all values, as torchmetrics' `MeanMetric`; its sums stay in float32.

    NaN among the values makes the mean NaN. torchmetrics would leave it out, for which it reads from the device in
    every update.
    """

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        """Adds values, of any shape, with their weights, which are broadcast against them (default: 1)."""
        value = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        weight = torch.as_tensor(1 if weight is None else weight, dtype=self.dtype, device=self.device).expand_as(value)
        self.mean_value += (value * weight).sum()
        self.weight += weight.sum()


def target_device(fn: Callable[[Tensor], Tensor], x: Tensor) -> torch.device:
    """Device to which `fn`, a function passed to `nn.Module._apply`, moves the tensor `x`."""
    return fn(torch.empty(0, device=x.device)).device
