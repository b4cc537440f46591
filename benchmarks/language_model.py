"""Validation loss of the language model's recipes over several seeds, and their speed compared with a bare loop.

`quality` trains a recipe and reports the best and the last validation loss on the whole held-out text; they differ
when the model overfits. nanoGPT's published losses for the same text, sizes and steps are 1.88 (its setting for a CPU)
and 1.4697 (for a GPU), estimated on 20 and 200 random batches. `speed` trains the same network on the same kind of
batches in turn by Lightning, as the recipe does, and by a bare loop of plain torch. Usage:

    python -m benchmarks.language_model quality shakespeare_cpu.yaml --path tinyshakespeare.txt --seeds 3
    python -m benchmarks.language_model speed shakespeare_cpu.yaml --path tinyshakespeare.txt

Other options are those of `zoo fit`.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from benchmarks.common import run_recipe
from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo import TransformerLM
from zoo.datamodules import Text


def quality(options: argparse.Namespace, extra: Sequence[str], folder: str) -> str:
    """Best and last validation loss over the seeds, as a table."""
    losses: dict[str, list[float]] = {"best": [], "last": []}
    for seed in range(options.seeds):
        trainer, seconds = run_recipe([options.recipe], folder, seed, f"--data.path={options.path}", *extra)
        with (Path(trainer.log_dir or "") / "metrics.csv").open() as file:
            rows = [(float(row["val/loss"]), int(row["step"]) + 1) for row in csv.DictReader(file) if row["val/loss"]]
        found = {"best": min(rows), "last": rows[-1]}
        for name, (loss, step) in found.items():
            losses[name].append(loss)
            report(name, seed, loss=loss, step=step, cpu_seconds=round(seconds))
    return markdown_table(["", "validation loss"], [[name, mean_std(values, 4)] for name, values in losses.items()])


class BlockTimer(Callback):
    """CPU seconds of each block of steps; on a shared machine they mean more than elapsed seconds.

    Args:
        steps: steps per block.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[float] = []
        self._start = math.nan

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.steps == 0:
            now = time.process_time()
            if trainer.global_step:
                self.seconds.append(now - self._start)
            self._start = now


def bare_loop(model: TransformerLM, data: Text, steps: int) -> Iterator[float]:
    """Trains the model's network by plain torch; yields the CPU seconds of each block of `steps` steps."""
    torch.manual_seed(0)
    network = model.network
    optimizer = model.optimizer(network.parameters())
    while True:
        loader, start = iter(data.train_dataloader()), time.process_time()
        for _ in range(steps):
            x, y = next(loader)
            loss = F.cross_entropy(network(x).flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        yield time.process_time() - start


def speed(options: argparse.Namespace, extra: Sequence[str], folder: str) -> str:
    """Median over the turns of Lightning's speed divided by that of the bare loop.

    The time before the first step and after the last one is left out.
    """
    ratios = []
    for turn in range(options.turns):
        trainer, _ = run_recipe(
            [options.recipe],
            folder,
            turn,
            f"--data.path={options.path}",
            f"--trainer.max_steps={options.steps}",
            f"--trainer.val_check_interval={options.steps}",
            "--trainer.limit_val_batches=0",
            f"--trainer.callbacks={__name__}.{BlockTimer.__name__}",
            f"--trainer.callbacks.steps={options.window}",
            *extra,
        )
        model: Any = trainer.lightning_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        seconds = next(c.seconds for c in trainer.callbacks if isinstance(c, BlockTimer))  # type: ignore[attr-defined]
        bare = list(islice(bare_loop(model, data, options.window), len(seconds)))
        tokens = options.window * data.batch_size * data.context_length
        speeds = [tokens / statistics.median(values) for values in (seconds, bare)]
        ratios.append(speeds[0] / speeds[1])
        report(f"turn {turn}", lightning=round(speeds[0]), bare_loop=round(speeds[1]), ratio=ratios[-1])
    report("Lightning beside a bare loop", ratio=statistics.median(ratios))
    return f"median ratio: {statistics.median(ratios):.3f}"


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("what", choices=["quality", "speed"], help="quantity to measure")
    parser.add_argument("recipe", help="recipe to train")
    parser.add_argument("--path", required=True, help="text file")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds of quality")
    parser.add_argument("--turns", type=int, default=5, help="turns of speed")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each turn of speed")
    parser.add_argument("--window", type=int, default=25, help="steps per timed block of speed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    options, extra = parser.parse_known_args(args)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        print((quality if options.what == "quality" else speed)(options, extra, folder))


if __name__ == "__main__":
    main()
