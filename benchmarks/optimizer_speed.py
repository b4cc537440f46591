"""What a step of ScalarAdam costs on the CPU, beside torch's optimizers, for a network of many small tensors.

Every round lets each optimizer take one step, in turn and in an order that rotates, so that a machine that is busy for
a while slows all of them alike. The table has the median time of a step with its quartiles, and the median over the
rounds of the ratio to Adam in its foreach form within the round. It is one thread, and the step alone: gradients are
there before. The network has the shapes of a ResNet with batch norm (a 3x3 convolution, a scale and a shift, again and
again): 65 tensors make a ResNet-20 with its two projections and the linear layer at the end. Run it as

    python benchmarks/optimizer_speed.py
    python benchmarks/optimizer_speed.py --tensors 200 --width 64
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

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


def network(tensors: int, width: int) -> list[nn.Parameter]:
    """Parameters of convolutions, each with a scale and a shift, and their gradients."""
    shapes = islice(cycle([(width, width, 3, 3), (width,), (width,)]), tensors)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def grouped(parameters: list[nn.Parameter]) -> list[dict[str, list[nn.Parameter]]]:
    """Weights and the rest, as for a weight decay that spares scales and shifts."""
    return [{"params": [p for p in parameters if (p.ndim > 1) == wide]} for wide in (True, False)]


def measure(tensors: int, width: int, rounds: int, warmup: int = 10) -> dict[str, list[float]]:
    """Microseconds of each optimizer's step in each round."""
    optimizers = {name: make(grouped(network(tensors, width))) for name, make in OPTIMIZERS.items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tensors", type=int, default=65, help="number of parameter tensors")
    parser.add_argument("--width", type=int, default=32, help="channels of each convolution")
    parser.add_argument("--rounds", type=int, default=500, help="steps of each optimizer that are timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    elements = sum(parameter.numel() for parameter in network(args.tensors, args.width))
    print(f"torch {torch.__version__}, 1 thread, {args.tensors} tensors, {elements:,} elements, {args.rounds} rounds\n")
    times = measure(args.tensors, args.width, args.rounds)
    print(f"{'':38}{'us a step':>10}{'quartiles':>16}{'ratio':>8}")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(value / base for value, base in zip(values, times[BASELINE], strict=True))
        print(f"{name:38}{median:10.0f}{low:9.0f} -{high:5.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
