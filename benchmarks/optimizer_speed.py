"""Time of a ScalarAdam step on the CPU, compared with torch's optimizers, for a network of many small tensors.

In every round each optimizer takes one step, in an order that rotates, so that other load on the machine affects all of
them alike. The table has the median time of a step, its quartiles, and the median over the rounds of the ratio to
Adam's foreach form in the same round. One thread; only the step is timed, the gradients exist before. The tensors have
the shapes of a ResNet with batch norm (a 3x3 convolution, a scale and a shift, repeated): 65 tensors make a ResNet-20
with two projections and the final linear layer. Usage:

    python -m benchmarks.optimizer_speed
    python -m benchmarks.optimizer_speed --tensors 200 --width 64
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from benchmarks.output import markdown_table, new_parser, report
from zoo.optim import ScalarAdam

BASELINE = "Adam, foreach"
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD, foreach": partial(SGD, lr=1e-3, foreach=True),
    "SGD with momentum, foreach": partial(SGD, lr=1e-3, momentum=0.9, foreach=True),
    BASELINE: partial(Adam, lr=1e-3, foreach=True),
    "Adam, loop (torch's choice on a CPU)": partial(Adam, lr=1e-3, foreach=False),
    "Adam, fused": partial(Adam, lr=1e-3, fused=True),
    "AdamW, foreach": partial(AdamW, lr=1e-3, foreach=True),
    "ScalarAdam, global": partial(ScalarAdam, lr=1e-3, scope="global"),
    "ScalarAdam, group": partial(ScalarAdam, lr=1e-3, scope="group"),
    "ScalarAdam, tensor": partial(ScalarAdam, lr=1e-3, scope="tensor"),
    "ScalarAdam, tensor, rms": partial(ScalarAdam, lr=1e-3, scope="tensor", scale="rms"),
    "ScalarAdam, global, with weight decay": partial(ScalarAdam, lr=1e-3, weight_decay=0.1),
    "ScalarAdam, global, loop": partial(ScalarAdam, lr=1e-3, foreach=False),
}


def new_parameters(tensors: int, width: int) -> list[nn.Parameter]:
    """Parameters of convolutions, each with a scale and a shift, with gradients."""
    shapes = islice(cycle([(width, width, 3, 3), (width,), (width,)]), tensors)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def parameter_groups(parameters: list[nn.Parameter]) -> list[dict[str, list[nn.Parameter]]]:
    """Weights and the other parameters, as for weight decay on the weights only."""
    return [{"params": [p for p in parameters if (p.ndim > 1) == wide]} for wide in (True, False)]


def measure(tensors: int, width: int, rounds: int, warmup: int = 10) -> dict[str, list[float]]:
    """Duration of each optimizer's step in each round, in microseconds."""
    optimizers = {name: make(parameter_groups(new_parameters(tensors, width))) for name, make in OPTIMIZERS.items()}
    names = list(optimizers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            optimizers[name].step()
            if number >= 0:
                times[name].append(1e6 * (time.perf_counter() - start))
    return times


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--tensors", type=int, default=65, help="number of parameter tensors")
    parser.add_argument("--width", type=int, default=32, help="channels of each convolution")
    parser.add_argument("--rounds", type=int, default=500, help="timed steps of each optimizer")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    elements = sum(parameter.numel() for parameter in new_parameters(options.tensors, options.width))
    size = f"{options.tensors} tensors, {elements:,} elements"
    print(f"torch {torch.__version__}, 1 thread, {size}, {options.rounds} rounds\n")
    times = measure(options.tensors, options.width, options.rounds)
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(value / base for value, base in zip(values, times[BASELINE], strict=True))
        report(name, us_per_step=median, ratio=ratio)
        rows.append([name, f"{median:.0f}", f"{low:.0f} to {high:.0f}", f"{ratio:.2f}"])
    print(markdown_table(["optimizer", "us per step", "quartiles", "ratio"], rows))


if __name__ == "__main__":
    main()
