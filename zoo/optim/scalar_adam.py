"""Adam as in the lecture: the second moment is one number, a moving average of the squared gradient norm.

    m <- beta1 m + (1 - beta1) g               m^ = m / (1 - beta1^t)
    r <- beta2 r + (1 - beta2) ||g||^2         r^ = r / (1 - beta2^t)
    theta <- theta - lr m^ / (sqrt(r^) + eps)

Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) has an r for every coordinate. With a single r the step has the
direction of m, so training does not depend on the choice of coordinates, and the optimizer needs half the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from zoo.errors import UserError


class ScalarAdam(Optimizer):
    """Adam with a single number as second moment.

    The meaning of the learning rate depends on `scale`. With "norm", as in the lecture, the first step has length `lr`
    in the space of all d parameters; Adam's first step moves every coordinate by about `lr`, a length of
    `sqrt(d) * lr`. A learning rate tuned for Adam is then too small by sqrt(d), a factor of a thousand for a million
    parameters. "rms" divides ||g||^2 by d, so that learning rates and `eps` are on Adam's scale.

    For parameters sharded as DTensors (`fully_shard`, Lightning's ModelParallelStrategy) the norm is that of the whole
    gradient. DDP needs no special care, because all ranks have the same gradients. Not supported are methods that give
    the optimizer plain tensors of one shard (DeepSpeed's ZeRO, ZeroRedundancyOptimizer): the norm would be the shard's.

    Example:
        >>> optimizer = ScalarAdam(model.parameters(), lr=1e-3, scale="rms")

    Args:
        params: real parameters, named parameters or parameter groups.
        lr: learning rate; a tensor with one element can be changed between replays of a CUDA graph.
        betas: decay rates of the moving averages of g and ||g||^2.
        eps: constant added to the square root of r^.
        weight_decay: decoupled weight decay, as in AdamW: each step first multiplies parameters by
            `1 - lr * weight_decay`.
        scope: tensors that share one r: "global" for all parameters of the optimizer, as in the lecture; "group" for
            each parameter group; "tensor" for each tensor. With "global", all groups need the same beta2.
        scale: "norm" for ||g||^2, "rms" for its mean over the elements that have a gradient in the step.
        maximize: maximize the objective instead of minimizing it.
        foreach: update many tensors in few kernels (default: unless there are tensor subclasses).
        capturable: count steps on the parameters' device, which CUDA graphs require, instead of the CPU. In both cases
            a step never waits for the device.

    Raises:
        UserError: a hyperparameter is out of range, groups differ in an option that they must share, or a parameter is
            complex or an FSDP1 shard.
    """

    # State of a parameter: the average m ("exp_avg") and its number of updates ("step"), as in Adam; r and its number
    # of updates ("r_step"; with scope "tensor" this is "step"). The counts differ because a parameter without a
    # gradient skips an update of m, but not of a shared r.
    #
    # A shared r is the same 0-dim tensor object in the states of all parameters that share it. It is not kept in the
    # parameter group, because Lightning moves and DCP (torch.distributed.checkpoint) regroups only the state of
    # parameters, and because a global r belongs to no group. If copying separates the objects, `_shared_r` unites them
    # in the next step. Parameters that have always had gradients in the same steps share their "step" in the same way:
    # the object's identity shows, without a read from the device, that they have the same step size.

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        scope: Literal["global", "group", "tensor"] = "global",
        scale: Literal["norm", "rms"] = "norm",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "scope": scope,
            "scale": scale,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group with its own options. A global r keeps its value."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1], self.param_groups[0])
        except UserError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a saved state exactly."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        owners = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        counts: dict[tuple[torch.device, float], Tensor] = {}
        for key, (group, parameter) in zip(keys, owners, strict=True):
            saved, state = state_dict["state"].get(key, {}), self.state.get(parameter, {})
            # torch has cast these to the parameter's dtype; bfloat16 cannot count beyond 256.
            if "r" in saved:
                state["r"] = saved["r"].to(parameter.device)
            if "r_step" in saved:
                state["r_step"] = saved["r_step"].to(_count_device(group, parameter))
            # Equal counts can have become different tensor objects.
            if "step" in state:
                count = state["step"]
                state["step"] = counts.setdefault((count.device, count.item()), count)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters.

        Args:
            closure: function that recomputes the gradients and returns the loss.

        Returns:
            The closure's loss, if there is a closure.

        Raises:
            UserError: a gradient is sparse, or a CUDA graph is captured without `capturable`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_group = [(group, self._buckets(group)) for group in self.param_groups]
        buckets = [bucket for _, of_group in by_group for bucket in of_group]
        if any(bucket.captured_with_cpu_count() for bucket in buckets):
            raise UserError("ScalarAdam: set capturable=True to capture a step in a CUDA graph")
        members = [parameter for group in self.param_groups for parameter in group["params"]]
        idle = [self.state[parameter] for parameter in members if parameter.grad is None and parameter in self.state]
        _separate_counts(idle, [bucket.step for bucket in buckets])
        _increment(bucket.step for bucket in buckets)
        scope = self.param_groups[0]["scope"]
        if scope == "global":
            self._step_with_shared_r(self.param_groups, buckets)
        elif scope == "group":
            for group, of_group in by_group:
                self._step_with_shared_r([group], of_group)
        else:
            for bucket in buckets:
                self._step_with_r_by_tensor(bucket)
        return loss

    def _buckets(self, group: dict[str, Any]) -> list[_Bucket]:
        """Groups the parameters that have a gradient into buckets that are updated together."""
        buckets: dict[tuple[Any, ...], _Bucket] = {}
        new_counts: dict[torch.device, Tensor] = {}
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise UserError(f"ScalarAdam needs dense gradients; one of shape {tuple(gradient.shape)} is sparse")
            state = self.state[parameter]
            if not state:
                device = _count_device(group, parameter)
                state["step"] = new_counts.setdefault(device, _new_count(device))
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            sharding = None
            if isinstance(parameter, DTensor):
                sharding = (parameter.device_mesh, parameter.placements)
                if gradient.placements != parameter.placements:
                    gradient = gradient.redistribute(*sharding)
            key = (parameter.device, parameter.dtype, id(state["step"]), sharding)
            if key not in buckets:
                buckets[key] = _Bucket(group, state["step"], sharding)
            buckets[key].add(parameter, gradient, state)
        return list(buckets.values())

    def _step_with_r_by_tensor(self, bucket: _Bucket) -> None:
        beta2 = bucket.group["betas"][1]
        squares = bucket.squares(mean=bucket.group["scale"] == "rms")
        for state in bucket.states:
            if "r" not in state:
                state["r"] = torch.zeros_like(squares[0])
        kept = [state["r"] for state in bucket.states]
        r = torch.stack(kept).lerp_(squares, 1 - beta2)
        torch._foreach_copy_(kept, list(r.unbind()))
        bucket.update(r / _correction(beta2, bucket.step, r.dtype))

    def _step_with_shared_r(self, groups: list[dict[str, Any]], buckets: list[_Bucket]) -> None:
        if not buckets:
            return
        beta2 = _common_beta2(groups)
        square = buckets[0].squares().sum()
        for bucket in buckets[1:]:
            square = square + bucket.squares().sum().to(square.device)
        if groups[0]["scale"] == "rms":
            square = square / max(1, sum(size for bucket in buckets for size in bucket.sizes))
        shared = self._shared_r(groups, square)
        _increment(count for _, count in shared.values())
        corrected = {}
        for device, (r, count) in shared.items():
            r.lerp_(square.to(r), 1 - beta2)
            corrected[device] = r / _correction(beta2, count, r.dtype)
        for bucket in buckets:
            bucket.update(corrected[bucket.device])

    def _shared_r(self, groups: list[dict[str, Any]], like: Tensor) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """Puts one shared r and its count into all states of these groups; returns both, (r, count), by device.

        Args:
            groups: parameter groups that share r.
            like: scalar whose dtype a new r gets.
        """
        members = [(group, p, self.state[p]) for group in groups for p in group["params"] if p in self.state]
        known = next((state for _, _, state in members if "r" in state), None)
        shared: dict[torch.device, tuple[Tensor, Tensor]] = {}
        for group, parameter, state in members:
            device = parameter.device
            if device not in shared:
                count_device = _count_device(group, parameter)
                source = state if "r" in state else known
                if source is None:
                    shared[device] = (torch.zeros_like(like, device=device), _new_count(count_device))
                else:
                    shared[device] = (source["r"].to(device), source["r_step"].to(count_device))
            state["r"], state["r_step"] = shared[device]
            known = known or state
        return shared


class _Bucket:
    """Parameters of one group with the same device, dtype, sharding and number of updates, updated together.

    Args:
        group: parameter group.
        step: number of updates, 0-dim.
        sharding: mesh and placements, for DTensors.
    """

    def __init__(self, group: dict[str, Any], step: Tensor, sharding: tuple[Any, Any] | None) -> None:
        self.group = group
        self.step = step
        self.sharding = sharding
        self.states: list[dict[str, Any]] = []
        self.sizes: list[int] = []  # elements of the whole tensors; the lists below hold this rank's shards
        self.parameters: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.averages: list[Tensor] = []

    def add(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        average = state["exp_avg"]
        self.states.append(state)
        self.sizes.append(parameter.numel())
        if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
            parameter, gradient, average = parameter.to_local(), gradient.to_local(), average.to_local()
        self.parameters.append(parameter)
        self.gradients.append(gradient)
        self.averages.append(average)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of norms and updates: the parameters' dtype, but at least float32, because float16 squares overflow."""
        return torch.promote_types(self.parameters[0].dtype, torch.float32)

    @property
    def foreach(self) -> bool:
        if self.group["foreach"] is not None:
            return self.group["foreach"]
        return all(type(tensor) in (Tensor, Parameter) for tensor in self.parameters)

    def captured_with_cpu_count(self) -> bool:
        """Whether a CUDA graph is being captured while steps are counted on the CPU, outside the graph."""
        if self.group["capturable"] or self.device.type != "cuda":
            return False
        return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

    def squares(self, mean: bool = False) -> Tensor:
        """||g||^2 of every whole tensor, over all shards, or its mean over the elements, (n,)."""
        if self.foreach:
            norms = torch.stack(torch._foreach_norm(self.gradients, 2, self.dtype))
        else:
            norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=self.dtype) for gradient in self.gradients])
        squares = norms.square()
        if mean:
            # Python numbers, because a tensor would have to be copied to the device.
            torch._foreach_div_(list(squares.unbind()), [float(max(1, size)) for size in self.sizes])
        if self.sharding is not None:
            mesh, placements = self.sharding
            parts = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
            squares = DTensor.from_local(squares, mesh, parts, run_check=False).full_tensor()
        return squares

    def update(self, r: Tensor) -> None:
        """Updates the averages and the parameters.

        Args:
            r: bias-corrected r^, 0-dim if shared by all tensors, or (n,).
        """
        beta1, lr = self.group["betas"][0], self.group["lr"]
        if isinstance(lr, Tensor):
            # A scalar on the CPU works with any device; a copy to the device would wait for it.
            lr = lr.reshape(()) if lr.is_cpu else lr.reshape(()).to(self.device)
        decay = 1 - lr * self.group["weight_decay"] if self.group["weight_decay"] else None
        size = lr / (_correction(beta1, self.step, r.dtype) * (r.sqrt() + self.group["eps"]))
        size = size.to(self.dtype)
        sign = 1 if self.group["maximize"] else -1
        if self.foreach:
            self._update_together(1 - beta1, size, sign, decay)
        else:
            self._update_one_by_one(1 - beta1, size, sign, decay)

    def _update_together(self, weight: float, size: Tensor, sign: int, decay: float | Tensor | None) -> None:
        if decay is not None:
            torch._foreach_mul_(self.parameters, decay)
        torch._foreach_lerp_(self.averages, self.gradients, weight)
        averages = self.averages
        if averages[0].dtype != self.dtype:
            averages = [average.to(self.dtype) for average in averages]
        if size.ndim == 0 and not size.is_cpu:
            # Two kernels in all. One size per tensor, or the CPU, needs one kernel per tensor anyway.
            torch._foreach_add_(self.parameters, torch._foreach_mul(averages, size), alpha=sign)
        else:
            sizes = [size] * len(averages) if size.ndim == 0 else list(size.unbind())
            torch._foreach_addcmul_(self.parameters, averages, sizes, value=sign)

    def _update_one_by_one(self, weight: float, size: Tensor, sign: int, decay: float | Tensor | None) -> None:
        sizes = size.expand(len(self.parameters))
        for p, g, m, step_size in zip(self.parameters, self.gradients, self.averages, sizes, strict=True):
            if decay is not None:
                p.mul_(decay)
            m.lerp_(g, weight)
            p.add_(m.to(self.dtype) * step_size, alpha=sign)


def _check(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Raises a UserError if an option of the group is out of range or contradicts the first group."""
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        raise UserError(f"ScalarAdam: lr as a tensor must hold one number, not {group['lr'].numel()}")
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise UserError(f"ScalarAdam: {name} must be at least 0, not {float(group[name])}")
    if len(group["betas"]) != 2:
        raise UserError(f"ScalarAdam: betas must be two numbers, not {group['betas']}")
    for index, beta in enumerate(group["betas"]):
        if not 0 <= beta < 1:
            raise UserError(f"ScalarAdam: betas[{index}] must be at least 0 and below 1, not {beta}")
    for name, choices in (("scope", ("global", "group", "tensor")), ("scale", ("norm", "rms"))):
        if group[name] not in choices:
            raise UserError(f"ScalarAdam: {name} must be one of {', '.join(choices)}, not {group[name]}")
        if group[name] != first[name]:
            raise UserError(f"ScalarAdam: all groups need the same {name}, not {first[name]} and {group[name]}")
    if group["scope"] == "global":
        _common_beta2([first, group])
    for parameter in group["params"]:
        if parameter.is_complex():
            raise UserError("ScalarAdam needs real parameters; use torch.view_as_real for complex ones")
        # How torch marks FSDP1's shards, plain tensors from which the norm of the whole gradient is not available.
        if getattr(parameter, "_fsdp_flattened", False):
            raise UserError("ScalarAdam does not support FSDP1; use fully_shard (FSDP2)")


def _common_beta2(groups: Iterable[dict[str, Any]]) -> float:
    values = sorted({group["betas"][1] for group in groups})
    if len(values) > 1:
        raise UserError(
            f"ScalarAdam: with scope='global' all groups need the same beta2, not {values}; or use scope='group'"
        )
    return values[0]


def _correction(beta: float, count: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - beta^count, computed without cancellation for beta close to 1."""
    return -torch.expm1(count.to(dtype) * (math.log(beta) if beta > 0 else -math.inf))


def _count_device(group: dict[str, Any], parameter: Tensor) -> torch.device:
    return parameter.device if group["capturable"] else torch.device("cpu")


def _new_count(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=device)


def _increment(counts: Iterable[Tensor]) -> None:
    """Adds one to each distinct tensor, even if it occurs several times."""
    for count in {id(count): count for count in counts}.values():
        count.add_(1)


def _separate_counts(idle: list[dict[str, Any]], counts: list[Tensor]) -> None:
    """Copies counts that parameters without a gradient share with parameters that are updated in this step.

    Args:
        idle: states of the parameters without a gradient; those with the same count share the same copy.
        counts: counts of the parameters that are updated.
    """
    updated = {id(count) for count in counts}
    copies: dict[int, Tensor] = {}
    for state in idle:
        if id(state["step"]) in updated:
            state["step"] = copies.setdefault(id(state["step"]), state["step"].clone())
