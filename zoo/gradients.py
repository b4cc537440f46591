"""Gradient norms by depth, and a verdict: healthy, vanishing or exploding.

The gradient of an early layer is a product with one factor for each later layer, so it shrinks or grows exponentially
with depth unless the factors are close to 1 (Hochreiter 1991; Glorot and Bengio 2010). Depth is not the only cause:
ReLU networks vanish with torch's default initialization but not with He's (2015, arXiv 1502.01852), and batch norm
without skip connections explodes (Yang et al. 2019, arXiv 1902.08129). Plain torch; `zoo.callbacks.GradientFlow`
applies it during training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

#: Modules whose weights are not measured, also if they have two or more dimensions.
NORMALIZATIONS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


# Layers and their order


@dataclass(eq=False)
class Layer:
    """A module with weights of two or more dimensions: Linear, Conv, Embedding, attention, LSTM and the like.

    Attributes:
        name: path of the module; with the parameter's name if the only weight is not called "weight".
        child: top-level child of the model that contains the layer.
        module: the module itself.
        weights: its weights, without biases and without those shared with an earlier layer.
        index: index among all modules, in order of registration.
    """

    name: str
    child: str
    module: nn.Module
    weights: list[nn.Parameter]
    index: int


def find_layers(model: nn.Module) -> list[Layer]:
    """Layers of a model in order of registration, without normalization layers; shared weights count once."""
    layers: list[Layer] = []
    seen: set[int] = set()
    for index, (path, module) in enumerate(model.named_modules()):
        if isinstance(module, NORMALIZATIONS):
            continue
        own = {k: p for k, p in module.named_parameters(recurse=False) if p.ndim >= 2 and p.is_floating_point()}
        own = {k: p for k, p in own.items() if id(p) not in seen}
        if own:
            seen.update(map(id, own.values()))
            path, parametrized, _ = f".{path}".partition(".parametrizations.")
            # torch.compile(network) wraps the network in a module that holds it under this name.
            parts = [part for part in path.split(".") if part not in ("", "_orig_mod")]
            child = parts[0] if parts else ""
            if len(own) == 1 and not parametrized and (not parts or "weight" not in own):
                parts += list(own)
            layers.append(Layer(".".join(parts), child, module, list(own.values()), index))
    return layers


@contextmanager
def execution_order(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Collects the model's layers in the order in which forward passes inside the context first execute them."""
    order: list[nn.Module] = []
    handles = record_order([layer.module for layer in find_layers(model)], order)
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


def record_order(modules: Sequence[nn.Module], order: list[nn.Module]) -> list[RemovableHandle]:
    """Registers hooks that append each module to `order` when it is first executed; returns their handles."""

    def append(module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and module not in order:
            order.append(module)

    return [module.register_forward_pre_hook(append) for module in modules]


def sort_by_execution(layers: Sequence[Layer], order: Sequence[nn.Module]) -> list[Layer]:
    """Sorts layers by their order of execution.

    A layer that is not in `order` follows the layer registered before it. This happens to compiled modules, and to
    modules whose weights are used without a call, as in attention.

    Args:
        layers: layers in order of registration.
        order: modules in order of execution; if empty, the layers stay in order of registration.
    """
    positions = {module: position for position, module in enumerate(order)}
    depths: list[int] = []
    for layer in layers:
        depths.append(positions.get(layer.module, depths[-1] if depths else -1))
    return [layer for _, layer in sorted(zip(depths, layers, strict=True), key=lambda pair: pair[0])]


def gradient_profile(model: nn.Module, order: Sequence[nn.Module] = ()) -> list[tuple[str, float]]:
    """Gradient norm of each layer after a backward pass, from input to output.

        with execution_order(network) as order:
            loss = criterion(network(x), y)
        loss.backward()
        gradient_profile(network, order)

    Args:
        model: any module; layers without a gradient are skipped.
        order: modules in order of execution, from `execution_order` (default: order of registration).

    Returns:
        Pairs of a layer's name and the Frobenius norm of the gradient of all its weights.
    """
    layers = [
        (layer, [w for w in layer.weights if w.grad is not None])
        for layer in sort_by_execution(find_layers(model), order)
    ]
    layers = [(layer, weights) for layer, weights in layers if weights]
    gradients = [dense_values(w.grad) for _, weights in layers for w in weights]
    norms = iter(torch.stack(tensor_norms(gradients, double=True)).tolist() if gradients else [])
    return [(layer.name, math.hypot(*(next(norms) for _ in weights))) for layer, weights in layers]


def group_networks(layers: Sequence[Layer], optimizers: Sequence[Optimizer]) -> dict[str, list[Layer]]:
    """Groups trained layers into networks: top-level children that share an optimizer form one network.

    A network is named after its child: a GAN has "generator" and "discriminator". A network of several children is
    called "model" if it is the only one, otherwise by their names joined with "+". Frozen layers belong to no network.
    """
    trained: set[int] = set()
    groups: list[set[str]] = []
    for optimizer in optimizers:
        owned = {id(p) for p in optimizer_parameters(optimizer) if p.requires_grad}
        trained |= owned
        children = {layer.child for layer in layers if any(id(w) in owned for w in layer.weights)}
        overlapping = [group for group in groups if group & children]
        groups = [group for group in groups if not group & children] + [children.union(*overlapping)]
    groups = [group for group in groups if group]
    networks = {}
    for group in groups:
        members = [layer for layer in layers if layer.child in group and any(id(w) in trained for w in layer.weights)]
        names = list(dict.fromkeys(layer.child or "model" for layer in members))
        networks["model" if len(groups) == 1 and len(names) > 1 else "+".join(names)] = members
    return networks


def optimizer_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Parameters of all groups of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def dense_values(gradient: Any) -> Tensor:
    """Values of a gradient as a dense tensor; embeddings can have sparse gradients."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient.detach()


def tensor_norms(tensors: list[Tensor], double: bool = False) -> list[Tensor]:
    """2-norm of each tensor, as scalars on the device.

    The norm of a sharded tensor (`DTensor`) is that of the whole tensor, which every rank must ask for.

    Args:
        tensors: tensors of any floating dtype; half precision is accumulated in float32.
        double: accumulate in float64, which is slower; in float32 the square of 1e-23 underflows.
    """
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
    dtype = torch.float64 if double and tensors and tensors[0].device.type != "mps" else torch.float32 if half else None
    if any(hasattr(t, "full_tensor") for t in tensors):  # for which _foreach_norm has no dtype
        norms: list[Any] = [torch.linalg.vector_norm(t, dtype=dtype) for t in tensors]
        return [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return list(torch._foreach_norm(tensors, 2, dtype)) if tensors else []


# Verdict


@dataclass(frozen=True)
class Verdict:
    """State of the gradients of one network; `str` gives both attributes in one line.

    Attributes:
        state: one of "healthy", "vanishing" and "exploding".
        reason: the number that decided it, with its threshold.
    """

    state: Literal["healthy", "vanishing", "exploding"]
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


def first_last_ratio(gradients: Sequence[float]) -> float:
    """Ratio of the median gradient norm in the first quarter of the hidden layers to that in the last quarter.

    With four or more layers, the outermost two do not count as hidden, because they differ in kind and size (the
    classifier of a residual network has 5 to 30 times the gradient of its first convolution, at any depth). Medians,
    because blocks alternate between layers of several kinds. If the last quarter has no gradient, as in blocks that
    start as the identity, the outermost two layers are compared.

    Args:
        gradients: gradient norm of each layer, from input to output.

    Returns:
        The ratio; NaN if there is nothing to compare.
    """
    hidden = gradients[1:-1] if len(gradients) >= 4 else gradients
    if not hidden:
        return math.nan
    quarter = max(1, len(hidden) // 4)
    first, last = statistics.median(hidden[:quarter]), statistics.median(hidden[-quarter:])
    if last == 0:
        first, last = gradients[0], gradients[-1]
    if last == 0:
        return math.inf if first > 0 else math.nan
    return first / last


def verdict(
    gradients: Sequence[float],
    weights: Sequence[float] = (),
    *,
    vanishing: float = 0.01,
    exploding: float = 100.0,
    max_relative_norm: float = 1000.0,
) -> Verdict:
    """Classifies the gradients of one network as healthy, vanishing or exploding.

    Args:
        gradients: gradient norm of each layer, from input to output.
        weights: weight norm of each layer; without them, `max_relative_norm` is not checked.
        vanishing: `first_last_ratio` below which the gradient is called vanishing.
        exploding: `first_last_ratio` above which the gradient is called exploding.
        max_relative_norm: norm of the whole gradient divided by the norm of all weights, above which the gradient is
            called exploding. At 1000, a step of gradient descent with a learning rate of only 0.001 moves the weights
            by their own norm.
    """
    invalid = sum(not math.isfinite(g) for g in gradients)
    if invalid:
        return Verdict("exploding", f"the gradient is not finite in {invalid} of {len(gradients)} layers")
    if not any(gradients):
        return Verdict("vanishing", "the gradient is zero in every layer")
    ratio = first_last_ratio(gradients)
    reason = f"the first layers' gradient is {_round(ratio)} {'times' if ratio >= 1 else 'of'} the last's"
    if ratio > exploding:
        return Verdict("exploding", f"{reason} (above {exploding:g})")
    weight_norm = math.hypot(*weights)
    if weight_norm and (relative := math.hypot(*gradients) / weight_norm) > max_relative_norm:
        reason = f"the gradient is {_round(relative)} times as long as the weights"
        return Verdict("exploding", f"{reason} (above {max_relative_norm:g})")
    if not ratio >= vanishing:
        return Verdict("vanishing", f"{reason} (below {vanishing:g})")
    return Verdict("healthy", f"{reason} (vanishing below {vanishing:g}, exploding above {exploding:g})")


def _round(number: float) -> str:
    """The number with two significant digits: 0.062, 1200, 9.6e-07; 0 for NaN."""
    return "0" if math.isnan(number) else f"{float(f'{number:.2g}'):g}"
