"""Gradients, weights, updates and dead ReLUs of one training batch, measured by hooks."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo._lightning import compiled_modules
from zoo.gradients import (
    Layer,
    Verdict,
    dense_values,
    first_last_ratio,
    optimizer_parameters,
    record_order,
    tensor_norms,
    verdict,
)


class Row(NamedTuple):
    """Measurement of one layer at one optimizer step; NaN for what was not measured.

    Attributes:
        gradient: gradient norm; Inf if the gradient is not finite.
        weight: weight norm before the step.
        update: norm of the update divided by the weight norm.
    """

    gradient: float
    weight: float
    update: float


#: Row of a layer that got no gradient.
EMPTY_ROW = Row(math.nan, math.nan, math.nan)


@dataclass
class Measurement:
    """Measurement of one network at one optimizer step.

    Attributes:
        step: number of optimizer steps before this one, as Lightning counts them.
        network: name of the network.
        layers: names of its layers, from input to output.
        rows: one row per layer.
        dead_relus: fraction of ReLU units that are zero throughout the batch; NaN without ReLUs.
        number: number of measurements of the network before this one.
    """

    step: int
    network: str
    layers: tuple[str, ...]
    rows: list[Row]
    dead_relus: float = math.nan
    number: int = 0

    def with_gradient(self) -> list[Row]:
        """Rows of the layers that have a gradient."""
        return [row for row in self.rows if not math.isnan(row.gradient)]

    def verdict(self, **thresholds: float) -> Verdict:
        """Verdict on the gradients; see `zoo.gradients.verdict`."""
        rows = self.with_gradient()
        return verdict([row.gradient for row in rows], [row.weight for row in rows], **thresholds)

    def scalars(self) -> dict[str, float]:
        """Scalars to log: `first_last_ratio`, `update_ratio` (median over layers) and `dead_relus`, if finite."""
        rows = self.with_gradient()
        updates = [row.update for row in rows if math.isfinite(row.update)]
        scalars = {
            "first_last_ratio": first_last_ratio([row.gradient for row in rows]),
            "update_ratio": statistics.median(updates) if updates else math.nan,
            "dead_relus": self.dead_relus,
        }
        return {name: scalar for name, scalar in scalars.items() if math.isfinite(scalar)}


class BatchProbe:
    """All hooks of one training batch, and what they measure.

    Args:
        model: the LightningModule.
        layers: all layers of the model.
        measured: layers to measure.
        unordered: measured layers whose order of execution is not known yet.
        order: modules in order of execution; `unordered` modules are appended to it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[Layer],
        measured: list[Layer],
        unordered: list[Layer],
        order: list[nn.Module],
    ) -> None:
        self._measured = measured
        self._steps: dict[int, StepProbe] = {}
        self._dead: list[tuple[Layer, Tensor, int]] = []
        compiled = compiled_modules(model)
        self._handles = record_order([la.module for la in unordered if la.module not in compiled], order)
        for module, layer in _find_relus(model, layers):
            if layer in measured and module not in compiled:
                self._handles.append(module.register_forward_hook(partial(self._record_dead, layer)))

    def _record_dead(self, layer: Layer, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Without gradients the pass does not train this network: it only draws samples, for example.
        if not torch.compiler.is_compiling() and torch.is_grad_enabled() and output.numel():
            self._dead.append((layer, *_count_dead(output, layer.module)))

    def before_step(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Measures the optimizer's next step, if it is its first in this batch.

        Args:
            optimizer: optimizer that is about to step.
            scale: loss scale by which the gradients are still multiplied, if any.
        """
        if id(optimizer) not in self._steps:
            self._steps[id(optimizer)] = StepProbe(optimizer, self._measured, scale)

    def remove(self) -> None:
        """Removes all hooks."""
        for handle in self._handles:
            handle.remove()
        for step in self._steps.values():
            step.remove()

    def read(self) -> tuple[dict[Layer, Row], dict[Layer, tuple[int, int]]]:
        """Copies all measurements from the device in one transfer.

        Returns:
            Row of each layer that was updated, and the numbers (dead units, all units) of each layer followed by ReLUs.
        """
        norms = [norm for step in self._steps.values() if step.layers for norm in step.norms()]
        if not norms:
            return {}, {}
        counts = [count.to(norms[0].dtype).unsqueeze(0) for _, count, _ in self._dead]
        numbers = iter(torch.cat([*norms, *counts]).tolist())
        parts: dict[Layer, list[Row]] = {}
        for step in self._steps.values():
            columns = [[next(numbers) for _ in step.layers] for _ in Row._fields]
            for layer, *row in zip(step.layers, *columns, strict=True):
                parts.setdefault(layer, []).append(Row(*row))
        units: dict[Layer, tuple[int, int]] = {}
        for layer, _, count in self._dead:
            dead, total = units.get(layer, (0, 0))
            units[layer] = (dead + int(next(numbers)), total + count)
        return {layer: _merge_rows(rows) for layer, rows in parts.items()}, units


class StepProbe:
    """Norms of gradients, weights and updates in one optimizer step, measured without waiting for the device.

    Args:
        optimizer: optimizer that is about to step.
        layers: layers to measure; weights of other optimizers are skipped.
        scale: loss scale by which the gradients are still multiplied, if any.
    """

    def __init__(self, optimizer: Optimizer, layers: list[Layer], scale: Tensor | None) -> None:
        owned = {id(p) for p in optimizer_parameters(optimizer)}
        pairs = [(layer, w) for layer in layers for w in layer.weights if id(w) in owned and w.grad is not None]
        self.layers = [layer for layer, _ in pairs]  # one entry per weight
        self._weights = [w.detach() for _, w in pairs]
        self._before = [w.clone() for w in self._weights]
        gradients = tensor_norms([dense_values(w.grad) for _, w in pairs], double=True)
        self._gradient_norms = gradients if scale is None else [norm / scale for norm in gradients]
        self._weight_norms = tensor_norms(self._before)
        self._update_norms: list[Tensor] = []
        self._handle = optimizer.register_step_post_hook(self._measure_update)

    def _measure_update(self, *_: Any) -> None:
        if self._weights and not self._update_norms:  # only the first of several steps in one batch
            torch._foreach_sub_(self._before, self._weights)
            self._update_norms = tensor_norms(self._before)

    def norms(self) -> list[Tensor]:
        """Norms of gradients, weights and updates, each of shape (len(layers),)."""
        gradients = torch.stack(self._gradient_norms)
        weights = torch.stack(self._weight_norms).to(gradients.dtype)
        if self._update_norms:
            updates = torch.stack(self._update_norms).to(weights)
        else:
            updates = torch.full_like(weights, math.nan)
        return [gradients, weights, updates]

    def remove(self) -> None:
        """Removes the hook."""
        self._handle.remove()


def _merge_rows(rows: list[Row]) -> Row:
    """Merges the rows of a layer's weights, whose updates are norms, into the layer's row, whose update is a ratio."""
    gradient, weight, update = (math.hypot(*column) for column in zip(*rows, strict=True))
    return Row(gradient if math.isfinite(gradient) else math.inf, weight, update / weight if weight else math.nan)


def _is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.ReLU6) or (isinstance(module, nn.LeakyReLU) and module.negative_slope == 0)


def _find_relus(model: nn.Module, layers: list[Layer]) -> list[tuple[nn.Module, Layer]]:
    """ReLU modules, each with the layer registered before it, in the same top-level child if that has layers."""
    found = []
    for index, (path, module) in enumerate(model.named_modules()):
        if _is_relu(module) and layers:
            child = path.partition(".")[0]
            candidates = [layer for layer in layers if layer.child == child] or layers
            before = [layer for layer in candidates if layer.index < index] or candidates[:1]
            found.append((module, before[-1]))
    return found


def _count_dead(output: Tensor, layer: nn.Module) -> tuple[Tensor, int]:
    """Counts the units of an activation that are zero for every sample and at every position.

    Args:
        output: activation, (..., C, *positions) after a convolution, whose units are the channels, or (..., D) after
            any other layer.
        layer: layer before the activation.

    Returns:
        Number of dead units, a scalar on the device, and number of units.
    """
    kernel: Any = getattr(layer, "kernel_size", ())
    unit_dim = output.ndim - 1 - (len(kernel) if output.ndim > 2 else 0)
    other_dims = [dim for dim in range(output.ndim) if dim != unit_dim]
    largest = output.detach().amax(other_dims) if other_dims else output.detach()
    return (largest <= 0).sum(), largest.numel()
