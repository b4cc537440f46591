"""What the memory allocator's settings of the command line are worth: page faults and CPU time of a step. Usage:

    python -m benchmarks.allocator
    python -m benchmarks.allocator --recipes gan diffusion --turns 5

Each recipe is trained by `zoo fit` in processes of their own, in turn with the settings of glibc and with those of
`zoo.cli.allocator`, on one thread. A page fault is a page of memory that the system gives to the process and fills with
zeros.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

from benchmarks.common import in_own_process
from benchmarks.output import markdown_table, new_parser, report
from benchmarks.overhead import RECIPES, fit_recipe
from zoo.cli.allocator import keep_freed_memory

WARMUP = 0.25  # part of the steps that is not counted


class StepCost(Callback):
    """CPU seconds, page faults and peak memory of this process over the steps after the warm-up.

    Args:
        steps: steps to train for, those of the warm-up included.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.first = steps, int(WARMUP * steps)
        self.done = 0
        self.readings: list[tuple[float, int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> int | None:
        if self.done in (self.first, self.steps):
            self.readings.append((time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
        self.done += 1
        if self.done <= self.steps:
            return None
        trainer.should_stop = True
        return -1  # leaves out the rest of the epoch

    def result(self) -> dict[str, float]:
        """Milliseconds and page faults of a step, and the peak memory in MB."""
        (t0, f0), (t1, f1) = self.readings
        counted = self.steps - self.first
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        return {"ms": 1000 * (t1 - t0) / counted, "faults": (f1 - f0) / counted, "megabytes": peak}


def train(recipe: str, steps: int, keep: bool) -> dict[str, float]:
    """Trains a recipe with the settings of the command line, or with those of the system; returns its cost."""
    if keep:
        keep_freed_memory()
    cost = StepCost(steps)
    fit_recipe(recipe, cost)
    return cost.result()


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes to train")
    parser.add_argument("--turns", type=int, default=3, help="processes of each kind")
    parser.add_argument("--scale", type=float, default=8.0, help="steps, as a multiple of those in overhead's blocks")
    options = parser.parse_args(args)
    rows = []
    for recipe in options.recipes:
        steps = max(4, round(RECIPES[recipe] * options.scale))
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(options.turns):
            for keep, results in found.items():
                results.append(in_own_process(recipe, train, recipe, steps, keep))
        medians = {
            f"{name}_{'kept' if keep else 'system'}": statistics.median(result[name] for result in results)
            for keep, results in found.items()
            for name in ("ms", "faults", "megabytes")
        }
        ratio = statistics.median(b["ms"] / a["ms"] for a, b in zip(found[False], found[True], strict=True))
        report(recipe, None, ratio=round(ratio, 3), **{name: round(value, 2) for name, value in medians.items()})
        cells = [f"{medians[f'{name}_{kind}']:,.0f}" for name in ("faults", "megabytes") for kind in ("system", "kept")]
        rows.append([recipe, f"{medians['ms_system']:.1f}", f"{medians['ms_kept']:.1f}", f"{ratio:.2f}", *cells])
    head = ["CPU ms a step", "kept", "ratio", "page faults a step", "kept", "peak MB", "kept"]
    print(markdown_table(["recipe", *head], rows))


if __name__ == "__main__":
    main()
