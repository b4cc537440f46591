"""Parameters that a callback adds to an optimizer in mid-run, such as Lightning's `BackboneFinetuning`.

Lightning adds them as one group, which then differs from what `build_optimizer` makes: it has weight decay on biases
and norms, one learning rate for all layers, and no place in the schedule, which torch refuses to step from then on.
Here the group is split like the others, and the schedule is extended to it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.optim.groups import parameter_groups


def adopt_unfrozen(
    optimizer: Optimizer, scheduler: LambdaLR | None, network: nn.Module, layer_decay: float, built: int
) -> bool:
    """Splits groups that were added by weight decay and layer, and lets them follow the schedule.

    The learning rate of the last group is the reference, for that is where `BackboneFinetuning` sets it at the start of
    every epoch: the layer nearest to the head has this rate, and every layer before it `layer_decay` times that of the
    next one. Within an epoch the rates follow the schedule. Nothing changes when it is called again.

    Args:
        optimizer: optimizer, changed in place.
        scheduler: its schedule, changed in place; None for constant learning rates.
        network: network whose parameters are optimized.
        layer_decay: ratio of the learning rates of neighboring layers.
        built: number of groups that the optimizer was built with.

    Returns:
        Whether groups were split, that is, whether parameters have been unfrozen since the last call.
    """
    added = optimizer.param_groups[built:]
    if not added:
        return False
    split = any("unfrozen" not in group for group in added)
    if split:
        del optimizer.param_groups[built:]
        for index, group in enumerate(added):
            parts = [group] if "unfrozen" in group else _split(group | {"unfrozen": index}, network, layer_decay)
            for part in parts:
                optimizer.add_param_group(part)
        added = optimizer.param_groups[built:]
    last = added[-1]
    for group in added:
        if group["unfrozen"] == last["unfrozen"]:
            group["lr"] = last["lr"] * group["lr_scale"] / last["lr_scale"]
    if scheduler is not None:
        _extend(scheduler, added, built)
    return split


def _split(group: dict[str, Any], network: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Parts of a group, the layer nearest to the head last; their parameters require gradients."""
    members = set(group["params"])
    for parameter in members:
        parameter.requires_grad_(True)  # a callback that resumes has frozen them again
    parts = []
    for part in reversed(parameter_groups(network, layer_decay)):
        if parameters := [p for p in part["params"] if p in members]:
            parts.append({**group, "lr_scale": 1.0, **part, "params": parameters})
    return parts


def _extend(scheduler: LambdaLR, added: list[dict[str, Any]], built: int) -> None:
    """Gives the added groups the schedule of the first one, which continues from their present learning rates."""
    factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
    for group in added:
        group["initial_lr"] = group["lr"] / factor if factor else group["lr"]
    scheduler.base_lrs[built:] = [group["initial_lr"] for group in added]
    scheduler.lr_lambdas[built:] = [scheduler.lr_lambdas[0]] * len(added)
