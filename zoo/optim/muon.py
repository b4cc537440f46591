"""Muon: momentum whose singular values are set to one, for matrices and kernels; Adam for all other parameters.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon). For a
matrix with the gradient G:

    M <- momentum M + (1 - momentum) G
    U = (1 - momentum) G + momentum M                   (Nesterov)
    theta <- theta - lr 0.2 sqrt(max(rows, columns)) orthogonalize(U)

A gradient has few large singular values, and with plain momentum or Adam only these directions are learned at once. The
factor of Liu et al. 2025 (arXiv 2502.16982, eq. 4) gives matrices of every shape an update with the root mean square
0.2 lr, about that of Adam. `torch.optim.Muon` takes matrices only, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from zoo.errors import UserError

#: Coefficients of x, x^3 and x^5, with the steepest slope at 0 for which singular values end near 1 (Jordan et al.).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2  # root mean square of an update at lr 1


def orthogonalize(x: Tensor) -> Tensor:
    """U V^T of matrices U S V^T, by a Newton-Schulz iteration of order 5, in at least float32.

    Singular values above a thousandth of the norm end between 0.68 and 1.14, which is as good as 1 here.

    Args:
        x: (..., rows, columns).

    Returns:
        (..., rows, columns); 0 for a matrix of zeros.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products are those of the shorter side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon for parameters of two and more dimensions, Adam for the others, with decoupled weight decay for both.

    A convolution's kernel is the matrix (out, in * height * width). Each group is split in two: "lr" of the matrices,
    and that of the others, which is `vector_lr`. Matrices of one shape are orthogonalized together.

    Example:
        >>> optimizer = Muon(model.parameters(), lr=0.01)

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate of matrices and kernels.
        vector_lr: learning rate of biases and of the scales of normalization layers, which Adam updates.
        momentum: decay rate of the moving average of a matrix's gradient.
        betas: decay rates of Adam's moving averages.
        eps: constant added to the denominator of Adam.
        weight_decay: decoupled weight decay: each step first multiplies parameters by `1 - lr * weight_decay`.

    Raises:
        UserError: a hyperparameter is out of range, or a parameter is complex or sharded: the singular values are
            those of the whole matrix.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        vector_lr: float = 3e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "vector_lr": vector_lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds the matrices and the other parameters of a group, as a group each."""
        options = self.defaults | param_group
        _check(options)
        given = param_group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        for orthogonal, lr in ((True, options["lr"]), (False, options["vector_lr"])):
            part = [member for member in members if (_tensor(member).ndim >= 2) == orthogonal]
            if part:
                super().add_param_group(param_group | {"params": part, "lr": lr, "orthogonal": orthogonal})
                for parameter in self.param_groups[-1]["params"]:
                    _check_parameter(parameter)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters that have a gradient.

        Args:
            closure: function that recomputes the gradients and returns the loss.

        Returns:
            The closure's loss, if there is a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["orthogonal"]:
                self._step_matrices(group, parameters)
            else:
                self._step_vectors(group, parameters)
        return loss

    def _step_matrices(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        alike: dict[Any, list[tuple[Tensor, Tensor]]] = {}  # parameters and momenta as matrices, by shape
        for p in parameters:
            state, gradient = self.state[p], _gradient(p)
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
            average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
            matrix = gradient.lerp(average, group["momentum"]).flatten(1)
            alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append((p, matrix))
        for (shape, dtype, _), pairs in alike.items():
            size = group["lr"] * RMS * math.sqrt(max(shape))
            updates = orthogonalize(torch.stack([matrix for _, matrix in pairs])).to(dtype)
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view(p.shape), alpha=size)

    def _step_vectors(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        states = [self.state[p] for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] = torch.zeros((), device=p.device)
        averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = group["betas"]
        options = {name: group[name] for name in ("lr", "eps", "weight_decay")}
        adamw(
            list(parameters),
            [_gradient(p) for p in parameters],
            averages,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            **options,
        )


def _tensor(member: Any) -> Tensor:
    """A parameter, also if it is given with its name."""
    return member[1] if isinstance(member, tuple) else member


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _check(options: dict[str, Any]) -> None:
    """Raises a UserError for an option that is out of range."""
    for name in ("lr", "vector_lr", "eps", "weight_decay"):
        if not options[name] >= 0:
            raise UserError(f"Muon: {name} must be at least 0, not {options[name]}")
    rates = {"momentum": options["momentum"]} | {f"betas[{i}]": beta for i, beta in enumerate(options["betas"])}
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"Muon: {name} must be at least 0 and below 1, not {rate}")


def _check_parameter(parameter: Tensor) -> None:
    """Raises a UserError for a parameter whose singular values are not known here."""
    if parameter.is_complex():
        raise UserError("Muon needs real parameters; use torch.optim.AdamW for complex ones")
    # The second is how torch marks FSDP1's shards.
    if isinstance(parameter, DTensor) or getattr(parameter, "_fsdp_flattened", False):
        raise UserError("Muon needs whole matrices, not shards: train with DDP, or take torch.optim.AdamW")
