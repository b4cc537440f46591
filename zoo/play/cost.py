"""What a computation of a model costs: evaluations of its network, and time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import nn


class Cost:
    """Cost of what is computed inside of `measured`.

    Attributes:
        evaluations: number of calls of the network, each for all samples; None if they are not counted.
        seconds: wall time.
    """

    def __init__(self) -> None:
        self.evaluations: int | None = None
        self.seconds = 0.0

    def __str__(self) -> str:
        time = f"{1000 * self.seconds:,.0f} ms"
        if self.evaluations is None:
            return time
        return f"{self.evaluations:,} network evaluation{'' if self.evaluations == 1 else 's'}, {time}"


@contextmanager
def measured(model: Any) -> Iterator[Cost]:
    """Measures what is computed inside of the context.

    The calls of the network are counted for a model whose `averaged` denoiser holds one, as diffusion and consistency
    models have it. Guidance calls it twice for each step.
    """
    cost = Cost()
    network = getattr(getattr(model, "averaged", None), "network", None)
    hook = None
    if isinstance(network, nn.Module):
        cost.evaluations = 0
        hook = network.register_forward_pre_hook(lambda *_: _count(cost))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    start = perf_counter()
    try:
        yield cost
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        cost.seconds = perf_counter() - start
        if hook is not None:
            hook.remove()


def _count(cost: Cost) -> None:
    cost.evaluations = (cost.evaluations or 0) + 1
