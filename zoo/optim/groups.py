"""Parameter groups: with and without weight decay, and with a learning rate by layer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from torch import nn

#: Modules whose children are layers that are called one after the other.
LISTS = (nn.Sequential, nn.ModuleList)


def parameter_groups(module: nn.Module, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Splits trainable parameters into those with weight decay and those without (fewer than two dimensions).

    Weight decay regularizes matrices and kernels; on biases and the scales of normalization layers it costs accuracy
    (Jia et al. 2018, arXiv 1807.11205, section 4.1).

    With `layer_decay` below 1 every layer has groups of its own, the last layer first, with the factor `lr_scale`
    = layer_decay^depth, where depth is 0 for the last layer, 1 for the one before it, and so on: the first layers of a
    pretrained network, which are the most general, change least (Bao et al. 2022, arXiv 2106.08254, appendix). Whoever
    builds the optimizer multiplies the learning rates by it (`scale_rates`).

    Args:
        module: module whose parameters are optimized.
        layer_decay: ratio of the learning rates of neighboring layers, in (0, 1].

    Returns:
        Parameter groups for an optimizer; those without weight decay set `weight_decay` to 0.
    """
    if layer_decay == 1:
        return _decay_groups(list(module.parameters()))
    groups = []
    for depth, layer in enumerate(reversed(parameter_layers(module))):
        groups += [group | {"lr_scale": layer_decay**depth} for group in _decay_groups(layer)]
    return groups


def _decay_groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    parameters = [p for p in parameters if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def scale_rates(param_groups: list[dict[str, Any]]) -> None:
    """Multiplies the learning rate of each group by its `lr_scale`, if it has one."""
    for group in param_groups:
        if "lr_scale" in group:
            group["lr"] = group["lr"] * group["lr_scale"]


def parameter_layers(module: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters by layer, in the order in which the modules are registered, from the input to the output.

    Layers are the entries of the outermost `nn.Sequential` and `nn.ModuleList`: blocks of a Transformer, blocks or
    stages of a convolutional network. What stands before, between and after these lists is one layer each: the stem,
    and the head with a last normalization. In a module without lists every module with a matrix or kernel is a layer.
    What has only biases and scales belongs to the layer before it.
    """
    parts = list(_parts(module))
    if any(in_list for in_list, _ in parts):
        runs = groupby(enumerate(parts), key=lambda part: part[0] if part[1][0] else -1)
        layers = [[p for _, (_, parameters) in run for p in parameters] for _, run in runs]
    else:
        layers = [parameters for _, parameters in parts]
    merged: list[list[nn.Parameter]] = []
    seen: set[nn.Parameter] = set()
    for layer in layers:
        new = [p for p in layer if p not in seen]  # shared parameters count where they come first
        seen.update(new)
        if merged and all(p.ndim < 2 for p in new):
            merged[-1] += new
        else:
            merged.append(new)
    return merged


def _parts(module: nn.Module) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    """Parts of a module in order, each as whether it is an entry of a list, and its parameters."""
    if own := list(module.parameters(recurse=False)):
        yield False, own
    for child in module.children():
        if not isinstance(module, LISTS):
            yield from _parts(child)
        elif parameters := list(child.parameters()):
            yield True, parameters
