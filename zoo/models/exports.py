"""What a model offers for export: functions of tensors, with the networks whose weights they use.

A model names its parts in the attribute `exports`, the default first, and builds each by a method:

    exports = ("sampler", "denoiser")

    def export_sampler(self, *, steps: int | None = None) -> Export: ...
    def export_denoiser(self) -> Export: ...

The keyword arguments of the method are options of the command `export`. A part is exported as the code that runs in
Python, so that it computes the same. In that code the batch size is `x.shape[0]`: `len(x)` would make it a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError


class Part(nn.Module):
    """A function of tensors as a module.

    Args:
        network: module that has all weights that are exported.
        function: function of tensors that returns a tensor, and uses weights of `network` only; by default the network
            itself.
    """

    def __init__(self, network: nn.Module, function: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self.function = network.forward if function is None else function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


@dataclass(frozen=True)
class Input:
    """One input of a part.

    Attributes:
        about: what it is, in a few words.
        shape: its shape without the batch dimension, which comes first; a name stands for an axis of variable length.
        dtype: its type.
        bounds: lowest and highest value; None for standard normal numbers.
    """

    about: str
    shape: tuple[int | str, ...] = ()
    dtype: torch.dtype = torch.float32
    bounds: tuple[float, float] | None = None

    def example(self, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """Random values within the bounds.

        Args:
            sizes: length of every axis that has a name; "batch" is the first.
            generator: random number generator.
        """
        shape = [sizes[side] if isinstance(side, str) else side for side in ("batch", *self.shape)]
        if self.bounds is None:
            return torch.randn(shape, generator=generator).to(self.dtype)
        low, high = self.bounds
        if not self.dtype.is_floating_point:
            return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(self.dtype)
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=self.dtype)


@dataclass(frozen=True)
class Export:
    """A part of a model that can be exported.

    Attributes:
        module: from the inputs, in their order, to a tensor.
        inputs: inputs by name.
        output: name of the output.
        output_shape: its shape without the batch dimension, which comes first; with names as in `Input.shape`.
        longest: greatest length of each axis that has a name.
        settings: plain values that were decided on when the part was built, such as the number of steps.
        note: what a user must know besides, in one line; empty for nothing.
    """

    module: Part
    inputs: Mapping[str, Input]
    output: str
    output_shape: tuple[int | str, ...]
    longest: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def examples(self, batch: int, fraction: float = 1.0) -> tuple[Tensor, ...]:
        """Random inputs, the same at every call, on the device of the module.

        Args:
            batch: number of samples.
            fraction: length of the axes of variable length, as a fraction of the greatest.
        """
        generator = torch.Generator().manual_seed(0)
        sizes = {name: max(1, int(fraction * length)) for name, length in self.longest.items()} | {"batch": batch}
        device = next((value.device for value in self.module.state_dict().values()), None)
        return tuple(value.example(sizes, generator).to(device) for value in self.inputs.values())


def label_inputs(highest: int | None) -> dict[str, Input]:
    """The input `labels` of a conditional model, classes up to `highest`; nothing if this is None."""
    if highest is None:
        return {}
    return {"labels": Input("numbers of the classes", dtype=torch.int64, bounds=(0, highest))}


def export_forward(model: Any) -> Export:
    """The `forward` of a model that names no parts: samples (N, *input_shape), or tokens, to a tensor.

    Raises:
        UserError: the model has no `forward`, or no `input_shape`.
    """
    # Lightning's own forward only raises an error.
    own = [base for base in type(model).__mro__ if base.__module__.split(".")[0] not in ("lightning", "torch")]
    forward = any("forward" in vars(base) for base in own)
    if not forward or not hasattr(model, "input_shape"):
        missing = "input_shape" if forward else "forward"
        raise UserError(f"{type(model).__name__} has no {missing} and names no exports: there is nothing to export")
    inputs = {"samples": Input("samples", tuple(model.input_shape))}
    if getattr(model, "tokens", False):
        inputs = {"tokens": Input("tokens", tuple(model.input_shape), torch.int64, (0, model.num_classes - 1))}
    built = Export(Part(model), inputs, "output", ())
    return replace(built, output_shape=tuple(run_once(built, type(model).__name__).shape[1:]))


def run_once(built: Export, name: str) -> Tensor:
    """Runs a part on one sample, without gradients; returns its output.

    Args:
        built: part, in eval mode.
        name: name of the part and its model, for the message.

    Raises:
        UserError: it does not run.
    """
    inputs = built.examples(batch=1)
    try:
        with torch.no_grad():
            return built.module(*inputs)
    except UserError:
        raise
    except Exception as error:  # networks of others raise anything
        reason, shapes = str(error).strip().split("\n")[0], " and ".join(str(tuple(x.shape)) for x in inputs)
        raise UserError(f"{name} does not run on {shapes}: {reason}") from error
