"""Training by Lightning beside the same training in plain PyTorch: the time of a step, in turn in one process.

One side is `zoo fit` as a user runs it, with the progress bar, metrics.csv and the callbacks that every run has, but
without validation, checkpoints, samples, curves and Weights & Biases. The other is the file of the recipe in plain/, a
loop of plain PyTorch that trains the same parameters to the bit. Both train in blocks of steps: one waits while the
other has its block. A block counts in CPU seconds of the process; the ratio of two neighboring blocks is free of what
else the machine does. Both have the memory allocator of the command line, or with `--system_allocator` that of the
system. `gan_digits` is the loop of plain/gan.py with the networks and the data of gan_digits.yaml. Usage:

    python -m benchmarks.overhead
    python -m benchmarks.overhead --recipes gan_digits mlp --blocks 40
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.output import markdown_table, new_parser, report
from zoo.cli.allocator import keep_freed_memory
from zoo.cli.fit import ZooCLI, run_trainer
from zoo.datamodules import Digits
from zoo.models.gan.network import MLPDiscriminator, MLPGenerator

PLAIN = Path(__file__).resolve().parents[1] / "plain"
#: Recipes, and the steps of a block.
RECIPES = {
    "gan_digits": 60,
    "gan": 20,
    "mlp": 10,
    "seq2seq": 15,
    "transformer": 20,
    "diffusion": 6,
    "vit": 5,
    "resnet": 3,
}
LONG = 100_000_000  # steps of a run that is ended from outside


class Turns:
    """Lets two loops train in blocks, one after the other, and keeps the time of each.

    Args:
        steps: steps of a block.
        blocks: blocks of each loop; those of the warm-up come before them.
        warmup: blocks of each loop that are not timed.
    """

    def __init__(self, steps: int, blocks: int, warmup: int = 2) -> None:
        self.steps, self.blocks, self.warmup = steps, blocks, warmup
        self.seconds: dict[str, list[float]] = {}
        self._turn = 0
        self._changed = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether all blocks are done."""
        return self._turn >= 2 * (self.blocks + self.warmup)

    def loop(self, name: str, number: int) -> Iterator[bool]:
        """Yields before each step of a loop, when it has its turn: True, and False when there is none left.

        Args:
            name: name of the loop.
            number: 0 for the loop that begins, 1 for the other one.
        """
        seconds = self.seconds.setdefault(name, [])
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._turn % 2 == number or self.over)
            if self.over:
                break
            start = time.process_time()
            for _ in range(self.steps):
                yield True
            if self._turn // 2 >= self.warmup:
                seconds.append(time.process_time() - start)
            self.end_turn()
        while True:
            yield False

    def end_turn(self) -> None:
        """Hands the turn to the other loop."""
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """Lets both loops end."""
        with self._changed:
            self._turn = 2 * (self.blocks + self.warmup)
            self._changed.notify_all()


class TakesTurns(Callback):
    """Ends training when the turns are over.

    Args:
        turns: what lets this loop and another one train in turn.
    """

    def __init__(self, turns: Turns) -> None:
        self.loop = turns.loop("lightning", 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> int | None:
        if next(self.loop):
            return None
        trainer.should_stop = True
        return -1  # leaves out the rest of the epoch


def fit_recipe(recipe: str, callback: Callback, extra: Sequence[str] = ()) -> None:
    """Trains a recipe by `zoo fit` with another callback, without validation, checkpoints and Weights & Biases."""

    class CLI(ZooCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(callback)  # type: ignore[attr-defined]
            return trainer

    with tempfile.TemporaryDirectory() as folder:
        args = ["fit", f"--config={recipe}.yaml", f"--run.root={folder}", "--wandb.mode=disabled"]
        args += ["--trainer.accelerator=cpu", "--trainer.callbacks=null", "--trainer.limit_val_batches=0"]
        args += ["--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false"]
        run_trainer([*args, *extra], CLI)


def train_plainly(recipe: str, turns: Turns, arguments: dict[str, Any]) -> None:
    """Trains the file of a recipe until the turns are over."""
    plain = load_plain("gan" if recipe == "gan_digits" else recipe)
    changed: dict[str, Any] = {"print": lambda *_, **__: None, "batches": in_turn(plain.batches, turns)}
    if hasattr(plain, "accuracy"):
        changed["accuracy"] = lambda *_: 0.0
    if recipe == "gan_digits":
        changed |= digits_gan()
    vars(plain).update(changed)
    plain.train(steps=LONG, **arguments)


def load_plain(name: str) -> Any:
    """A file of plain/ as a module of its own, which may be changed."""
    spec: Any = spec_from_file_location(name, PLAIN / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_turn(batches: Callable[..., Iterator[Any]], turns: Turns) -> Callable[..., Iterator[Any]]:
    """A loop's batches, each when the loop has its turn."""

    def generate(*args: Any) -> Iterator[Any]:
        source = batches(*args)
        for goes_on in turns.loop("plain", 1):
            if not goes_on:
                return
            yield next(source)

    return generate


def digits_gan() -> dict[str, Any]:
    """What plain/gan.py has in place of its networks and images for the recipe gan_digits.yaml."""
    data = Digits()
    data.setup("fit")
    x, y = data.split("train")
    return {
        "training_data": lambda: (x.repeat(20, 1, 1, 1), y.repeat(20)),
        "Generator": lambda _: MLPGenerator((1, 8, 8), 32),
        "Discriminator": lambda _: MLPDiscriminator((1, 8, 8)),
    }


def compare(recipe: str, steps: int, blocks: int, extra: Sequence[str]) -> dict[str, Any]:
    """Times a recipe by Lightning and plainly; returns milliseconds of a step and the median ratio of speeds."""
    turns = Turns(steps, blocks)
    arguments = {"batch_size": 64} if recipe == "gan_digits" else {}
    failed: list[BaseException] = []

    def other() -> None:
        try:
            train_plainly(recipe, turns, arguments)
        except BaseException as error:
            failed.append(error)
            turns.give_up()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    try:
        fit_recipe(recipe, TakesTurns(turns), extra)
    finally:
        turns.give_up()
        thread.join()
    if failed:
        raise failed[0]
    ours, plain = turns.seconds["lightning"], turns.seconds["plain"]
    ratios = [b / a for a, b in zip(ours, plain, strict=False)]
    return {
        "lightning_ms": round(1000 * statistics.median(ours) / steps, 3),
        "plain_ms": round(1000 * statistics.median(plain) / steps, 3),
        "speed": round(statistics.median(ratios), 3),
        "quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]] if len(ratios) > 1 else [],
        "threads": torch.get_num_threads(),
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes to compare")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of steps of each loop")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of steps in a block")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--system_allocator", action="store_true", help="memory allocator as the system sets it")
    options, extra = parser.parse_known_args(args)
    torch.set_num_threads(options.threads)
    if not options.system_allocator:
        keep_freed_memory()
    rows = []
    for recipe in options.recipes:
        found = compare(recipe, max(1, round(RECIPES[recipe] * options.scale)), options.blocks, extra)
        report(recipe, None, **found)
        rows.append([recipe, *(f"{found[name]:.2f}" for name in ("plain_ms", "lightning_ms")), f"{found['speed']:.3f}"])
    print(
        markdown_table(["recipe", "plain, ms a step", "Lightning, ms a step", "steps/s of Lightning over plain"], rows)
    )


if __name__ == "__main__":
    main()
