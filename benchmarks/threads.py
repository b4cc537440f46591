"""Speed of training against the number of CPU threads, and the number that `zoo fit` chooses.

Trains the file of each recipe in plain/ in blocks of steps, each block with another number of threads, in turn in one
process. The ratio of two neighboring blocks counts, in elapsed seconds (what threads gain) and in CPU seconds (what
they take); a thread that waits for work takes a whole core, so that the gain is to be measured on cores that are idle.
Beside it stands the mean work of a layer, from which `zoo.callbacks.threads` chooses. Usage:

    python -m benchmarks.threads --threads 1 2 4 8
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.output import markdown_table, new_parser, report
from benchmarks.overhead import LONG, RECIPES, digits_gan, load_plain
from zoo.callbacks.threads import LAYERS, multiply_adds, useful_threads


class LayerWork:
    """Multiply-adds of the linear layers and convolutions of one step, of whatever network."""

    def __init__(self) -> None:
        self.counts: list[float] = []

    def __enter__(self) -> LayerWork:
        def append(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, LAYERS):
                self.counts.append(multiply_adds(module, inputs[0], output))

        self._handle = nn.modules.module.register_module_forward_hook(append)
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()


def measure(recipe: str, threads: Sequence[int], steps: int, blocks: int) -> dict[str, Any]:
    """Trains a recipe; returns ratios of elapsed and of CPU seconds by the number of threads, and a layer's work."""
    plain = load_plain("gan" if recipe == "gan_digits" else recipe)
    wall: dict[int, list[float]] = {count: [] for count in threads}
    cpu: dict[int, list[float]] = {count: [] for count in threads}
    work = LayerWork()
    batches = plain.batches

    def in_blocks(*args: Any) -> Iterator[Any]:
        source = batches(*args)
        with work:
            yield next(source)
        for block in range(blocks + 1):
            for count in threads:
                torch.set_num_threads(count)
                yield next(source)
                start = time.perf_counter(), time.process_time()
                for _ in range(steps):
                    yield next(source)
                if block:  # the first is for warming up
                    wall[count].append((time.perf_counter() - start[0]) / steps)
                    cpu[count].append((time.process_time() - start[1]) / steps)

    vars(plain).update({"batches": in_blocks, "print": lambda *_, **__: None, "accuracy": lambda *_: 0.0})
    if recipe == "gan_digits":
        vars(plain).update(digits_gan())
    before = torch.get_num_threads()
    try:
        plain.train(steps=LONG, **({"batch_size": 64} if recipe == "gan_digits" else {}))
    finally:
        torch.set_num_threads(before)
    mean = statistics.mean(work.counts)
    return {
        "layer": mean,
        "chosen": useful_threads(mean),
        "ms": round(1000 * statistics.median(wall[threads[0]]), 2),
        "gain": {n: round(ratio(wall[threads[0]], wall[n]), 2) for n in threads[1:]},
        "cpu": {n: round(1 / ratio(cpu[threads[0]], cpu[n]), 2) for n in threads[1:]},
    }


def ratio(one: list[float], other: list[float]) -> float:
    """Median ratio of neighboring blocks."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes to train")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads")
    parser.add_argument("--blocks", type=int, default=10, help="blocks of steps for each number of threads")
    parser.add_argument("--scale", type=float, default=0.3, help="factor of the number of steps in a block")
    options = parser.parse_args(args)
    rows = []
    for recipe in options.recipes:
        found = measure(recipe, options.threads, max(1, round(RECIPES[recipe] * options.scale)), options.blocks)
        report(recipe, None, **found)
        gains = [f"{found[kind][n]:.2f}" for n in options.threads[1:] for kind in ("gain", "cpu")]
        rows.append([recipe, f"{found['layer'] / 1e6:.1f}", str(found["chosen"]), f"{found['ms']:.1f}", *gains])
    columns = [f"{what}, {n} threads" for n in options.threads[1:] for what in ("speed", "CPU time")]
    print(
        markdown_table(["recipe", "million multiply-adds of a layer", "threads chosen, at most", "ms", *columns], rows)
    )


if __name__ == "__main__":
    main()
