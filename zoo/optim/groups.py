"""Which parameters the weight decay reaches."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters for an optimizer: those with two dimensions or more, and the rest without decay.

    Matrices and kernels can be scaled down for what they mean; the biases and scales of norms cannot, and decaying
    them only costs (Jia et al. 2018, arXiv 1807.11205, section 4.1, among others).
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
