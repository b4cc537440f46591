"""The language model's recipes over several seeds, and their speed beside that of a bare loop.

`quality` trains a recipe as it stands and gives validation losses over the whole held-out text, the best and the last,
since such a model overfits in the end. nanoGPT's published figures for the same text, sizes and steps are 1.88 (its
setting for a CPU) and 1.4697 (for a GPU), estimated on 20 and 200 random batches. `speed` trains the same network on
such batches in turn by Lightning, as the recipe does, and by a loop of plain torch that does nothing else. Run as

    python -m benchmarks.language_model quality shakespeare_cpu.yaml --path tinyshakespeare.txt --seeds 3
    python -m benchmarks.language_model speed shakespeare_cpu.yaml --path tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from zoo import TransformerLM
from zoo.cli.fit import run_trainer
from zoo.datamodules import Text


def train(recipe: str, path: str, seed: int, folder: str, *options: str) -> Any:
    """Runs the recipe by the command line's own code; returns the Trainer."""
    command = ["fit", "--config", recipe, f"--data.path={path}", f"--seed_everything={seed}", f"--run.root={folder}"]
    shown = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return run_trainer([*command, *shown, *options]).trainer


def quality(arguments: argparse.Namespace, folder: str, extra: list[str]) -> None:
    best, last = [], []
    for seed in range(arguments.seeds):
        start = time.process_time()
        trainer = train(arguments.recipe, arguments.path, seed, folder, *extra)
        seconds = time.process_time() - start
        with (Path(trainer.log_dir) / "metrics.csv").open() as file:
            rows = [(float(row["val/loss"]), int(row["step"]) + 1) for row in csv.DictReader(file) if row["val/loss"]]
        best.append(min(rows)[0])
        last.append(rows[-1][0])
        row = {"best": min(rows), "last": rows[-1], "cpu_seconds": round(seconds)}
        print(json.dumps({"seed": seed, **row}), flush=True)
    for name, losses in {"best": best, "last": last}.items():
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        print(f"{name}: {statistics.mean(losses):.4f}{spread}")


class Clock(Callback):
    """CPU seconds of each window of batches: on a shared machine they mean more than those of the wall."""

    def __init__(self, window: int) -> None:
        self.window, self.seconds = window, list[float]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.window == 0:
            now = time.process_time()
            if trainer.global_step:
                self.seconds.append(now - self.begun)
            self.begun = now


def bare_loop(recipe_model: TransformerLM, data: Text, steps: int) -> Iterator[float]:
    """Trains the network of such a model by plain torch; yields the CPU seconds of so many steps each."""
    torch.manual_seed(0)
    network = recipe_model.network
    optimizer = recipe_model.optimizer(network.parameters())
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


def speed(arguments: argparse.Namespace, folder: str) -> None:
    """Median of the ratio over several turns; what comes before the first step and after the last is left out."""
    ratios = []
    for turn in range(arguments.turns):
        trainer = train(
            arguments.recipe, arguments.path, turn, folder,
            f"--trainer.max_steps={arguments.steps}", f"--trainer.val_check_interval={arguments.steps}",
            "--trainer.limit_val_batches=0", "--trainer.callbacks=benchmarks.language_model.Clock",
            f"--trainer.callbacks.window={arguments.window}",
        )  # fmt: skip
        clock = next(c for c in trainer.callbacks if type(c).__name__ == "Clock")
        bare = bare_loop(trainer.lightning_module, trainer.datamodule, arguments.window)
        tokens = arguments.window * trainer.datamodule.batch_size * trainer.datamodule.context_length
        speeds = [tokens / statistics.median(s) for s in (clock.seconds, list(islice(bare, len(clock.seconds))))]
        ratios.append(speeds[0] / speeds[1])
        row = {"lightning": round(speeds[0]), "bare loop": round(speeds[1]), "ratio": round(ratios[-1], 3)}
        print(json.dumps({"turn": turn, **row}), flush=True)
    print(f"median ratio: {statistics.median(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("recipe")
    parser.add_argument("--path", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=25, help="steps that a speed is measured over")
    parser.add_argument("--threads", type=int, default=1)
    arguments, extra = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("WANDB_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "quality":
            quality(arguments, folder, extra)
        else:
            speed(arguments, folder)


if __name__ == "__main__":
    main()
