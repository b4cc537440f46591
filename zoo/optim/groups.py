"""Parameter groups with and without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Splits trainable parameters into those with weight decay and those without (fewer than two dimensions).

    Weight decay regularizes matrices and kernels; on biases and the scales of normalization layers it costs accuracy
    (Jia et al. 2018, arXiv 1807.11205, section 4.1).

    Args:
        module: module whose parameters are optimized.

    Returns:
        Parameter groups for an optimizer; the second one sets `weight_decay` to 0.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
