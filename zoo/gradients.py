"""Gradient norms by depth, and a verdict on whether they vanish or explode.

In a chain of layers the gradient of an early one is a product with a factor for each layer behind it, so it falls or
grows exponentially with depth where the factors are not close to 1 (Hochreiter 1991; Glorot and Bengio 2010). What
happens in a network depends on more than depth: ReLU nets vanish with torch's default initialization and not with He's
(2015, arXiv 1502.01852), and batch norm without skips explodes (Yang et al. 2019, arXiv 1902.08129). So both
directions are watched. Plain torch; `zoo.callbacks.GradientFlow` does it during training.
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
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


# Layers, and their order


@dataclass(eq=False)
class Layer:
    """A module that itself owns weights of two or more dimensions: Linear, Conv, Embedding, attention, LSTM, ...

    Attributes:
        name: of the module, with the parameter's where that is not just "weight".
        child: the top-level child of the whole model that it belongs to.
        module: that owns the weights.
        weights: without biases and without what an earlier layer owns too.
        index: place among all modules, in the order of registration.
    """

    name: str
    child: str
    module: nn.Module
    weights: list[nn.Parameter]
    index: int


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers in the order of registration; normalization layers and biases are none, shared weights count once."""
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
            # torch.compile(network) puts the network into a shell, under this name.
            parts = [part for part in path.split(".") if part not in ("", "_orig_mod")]
            child = parts[0] if parts else ""
            if len(own) == 1 and not parametrized and (not parts or "weight" not in own):
                parts += list(own)
            layers.append(Layer(".".join(parts), child, module, list(own.values()), index))
    return layers


@contextmanager
def execution_order(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Lists the model's layers in the order in which a forward pass inside the context first executes them."""
    order: list[nn.Module] = []
    handles = watch_order([layer.module for layer in layers_of(model)], order)
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


def watch_order(modules: Sequence[nn.Module], order: list[nn.Module]) -> list[RemovableHandle]:
    """Sets hooks that add each of the modules to `order` when it is first executed; returns what removes them."""

    def note(module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and module not in order:
            order.append(module)

    return [module.register_forward_pre_hook(note) for module in modules]


def by_depth(layers: Sequence[Layer], order: Sequence[nn.Module]) -> list[Layer]:
    """The layers in the order of their execution.

    One that was not seen, since its weights are used without calling it (as attention does) or since it is compiled,
    follows the one that is registered before it. With nothing seen this is the order of registration.
    """
    place = {module: position for position, module in enumerate(order)}
    depths: list[int] = []
    for layer in layers:
        depths.append(place.get(layer.module, depths[-1] if depths else -1))
    return [layer for _, layer in sorted(zip(depths, layers, strict=True), key=lambda pair: pair[0])]


def gradient_profile(model: nn.Module, order: Sequence[nn.Module] = ()) -> list[tuple[str, float]]:
    """The norm of each layer's gradient, after a backward pass, the first layer first.

        with execution_order(network) as order:
            loss = criterion(network(x), y)
        loss.backward()
        gradient_profile(network, order)

    Args:
        model: any module. Layers without a gradient are left out.
        order: as `execution_order` gives it; without it, layers come in the order of registration.

    Returns:
        Pairs (name, Frobenius norm of the gradient of all its weights of two or more dimensions).
    """
    layers = [(layer, [w for w in layer.weights if w.grad is not None]) for layer in by_depth(layers_of(model), order)]
    layers = [(layer, weights) for layer, weights in layers if weights]
    gradients = [dense(w.grad) for _, weights in layers for w in weights]
    remaining = iter(torch.stack(norms_of(gradients, double=True)).tolist() if gradients else [])
    return [(layer.name, math.hypot(*(next(remaining) for _ in weights))) for layer, weights in layers]


def networks_of(layers: Sequence[Layer], optimizers: Sequence[Optimizer]) -> dict[str, list[Layer]]:
    """The layers that are trained, divided into networks: top-level children that share an optimizer are one.

    A network is named after its child: a GAN has "generator" and "discriminator". One of several children is called
    "model" if there is no other, else by all of their names. What is frozen, as a moving average is, belongs to none.
    """
    trained: set[int] = set()
    groups: list[set[str]] = []
    for optimizer in optimizers:
        owned = {id(p) for p in parameters_of(optimizer) if p.requires_grad}
        trained |= owned
        children = {layer.child for layer in layers if any(id(w) in owned for w in layer.weights)}
        touched = [group for group in groups if group & children]
        groups = [group for group in groups if not group & children] + [children.union(*touched)]
    groups = [group for group in groups if group]
    networks = {}
    for group in groups:
        members = [layer for layer in layers if layer.child in group and any(id(w) in trained for w in layer.weights)]
        names = list(dict.fromkeys(layer.child or "model" for layer in members))
        networks["model" if len(groups) == 1 and len(names) > 1 else "+".join(names)] = members
    return networks


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All that the optimizer updates."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def dense(gradient: Any) -> Tensor:
    """The numbers of a gradient: those of an Embedding may be sparse."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient.detach()


def norms_of(tensors: list[Tensor], double: bool = False) -> list[Tensor]:
    """2-norms, as scalars on the device.

    Args:
        tensors: of any floating dtype; half precision is summed up in single.
        double: sum up in double precision, which takes longer: the square of a gradient of 1e-23 is no longer a number
            of single precision.
    """
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
    dtype = torch.float64 if double and tensors and tensors[0].device.type != "mps" else torch.float32 if half else None
    return list(torch._foreach_norm(tensors, 2, dtype)) if tensors else []


# The verdict


@dataclass(frozen=True)
class Verdict:
    """What the gradients of one network are, and the number that says so; `str` is one line."""

    state: Literal["healthy", "vanishing", "exploding"]
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


def first_last_ratio(gradients: Sequence[float]) -> float:
    """How much of the gradient arrives: median norm in the first quarter of the hidden layers, by that in the last.

    Hidden are all but the outermost two, where there are four or more: those differ from the others in kind and size
    (the classifier of a residual network has 5 to 30 times the gradient of its first convolution, at any depth).
    Medians, since layers of several kinds take turns inside blocks, with factors of their own. Where the last quarter
    has no gradient at all, as in blocks that start as the identity, the outermost layers are compared.

    Args:
        gradients: norms, the first layer first.

    Returns:
        nan if there is nothing to compare.
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
    overwhelming: float = 1000.0,
) -> Verdict:
    """Judges the gradients of one network.

    Args:
        gradients: norm of each layer's gradient, the first layer first.
        weights: norm of each layer's weights.
        vanishing: `first_last_ratio` below which the gradient has vanished on its way to the first layers.
        exploding: ratio above which it has exploded on its way.
        overwhelming: norm of the whole gradient, in units of the norm of all weights, above which it has exploded
            everywhere. At 1000, one step of gradient descent with a learning rate as small as 0.001 moves the weights
            by their own length.
    """
    invalid = sum(not math.isfinite(g) for g in gradients)
    if invalid:
        return Verdict("exploding", f"the gradient is not finite in {invalid} of {len(gradients)} layers")
    if not any(gradients):
        return Verdict("vanishing", "the gradient is zero in every layer")
    ratio = first_last_ratio(gradients)
    said = f"the first layers' gradient is {_rounded(ratio)} {'times' if ratio >= 1 else 'of'} the last's"
    if ratio > exploding:
        return Verdict("exploding", f"{said} (above {exploding:g})")
    size = math.hypot(*weights)
    if size and (relative := math.hypot(*gradients) / size) > overwhelming:
        said = f"the gradient is {_rounded(relative)} times as long as the weights"
        return Verdict("exploding", f"{said} (above {overwhelming:g})")
    if not ratio >= vanishing:
        return Verdict("vanishing", f"{said} (below {vanishing:g})")
    return Verdict("healthy", f"{said} (vanishing below {vanishing:g}, exploding above {exploding:g})")


def _rounded(number: float) -> str:
    """Two digits: 0.062, 1200, 9.6e-07."""
    return "0" if math.isnan(number) else f"{float(f'{number:.2g}'):g}"
