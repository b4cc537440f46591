"""Quality of the classifiers' recipes over several seeds, and what each of their options contributes.

Every row is the recipe as it stands with some options changed, trained by the command line's own code for as many
epochs. What is chosen within a run is chosen on validation; the test split is measured at the end. Run it as

    python benchmarks/classifier_quality.py mlp --root data --seeds 3
    python benchmarks/classifier_quality.py resnet --root data --seeds 3 --precision bf16-mixed
    python benchmarks/classifier_quality.py resnet_options --root data --seeds 1 --epochs 3
    python benchmarks/classifier_quality.py resnet_speed

Each run is a line of JSON, and the table follows: mean and standard deviation over the seeds. CPU seconds are those of
the whole process while it trains, validation and command line included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.cli.fit import run_trainer
from zoo.models.resnet.network import PooledResNet

METRICS = ("acc", "nll", "brier", "ece")


@dataclass(frozen=True)
class Row:
    """A line of the table: what the training changes in the recipe, which checkpoint is taken, and how it is tested."""

    name: str
    options: tuple[str, ...] = ()
    checkpoint: str = "best"
    members: int = 1  # of an ensemble, each of which trains for its part of the epochs
    test: tuple[str, ...] = ()


# Early stopping without the stop: the best checkpoint of a run that goes on is that of one whose patience suffices.
GO_ON = "--trainer.callbacks.patience=1000"
BARE = ("--model.input_dropout=0", "--model.hidden_dropout=0", GO_ON)
TABLES = {
    "mlp": [
        Row("no dropout", BARE, "last"),
        Row("no dropout, early stopping", BARE),
        Row("dropout", (GO_ON,), "last"),
        Row("dropout, early stopping", (GO_ON,)),
        Row("the same, 50 dropout passes", (GO_ON,), test=("--model.mc_samples=50",)),
        Row("ensemble of 4 without dropout, a quarter of the epochs each", BARE, members=4),
    ],
    "resnet": [Row("recipe")],
    "resnet_options": [
        Row("recipe", (), "last"),
        Row("no mirror image at test", (), "last", test=("--model.flip_tta=false",)),
        Row("no average of the weights", ("--model.ema_half_life=0",), "last"),
        Row("no flip", ("--data.augment.flip=false",), "last"),
        Row("with crop 2", ("--data.augment.crop=2",), "last"),
        Row("no cutout", ("--data.augment.cutout=0",), "last"),
        Row("with mixup 0.2", ("--model.mixup=0.2",), "last"),
        Row("no label smoothing", ("--model.label_smoothing=0",), "last"),
        Row("ResNet-8 of He et al. on squares of pixels", ("--model.backbone=cifar", "--model.patch_size=2"), "last"),
        Row("constant rate of 0.05", ("--model.lr_scheduler=null", "--model.optimizer.lr=0.05"), "last"),
    ],
}


class Runs:
    """Trains each combination of options once, however many rows are measured on it."""

    def __init__(self, recipe: str, common: list[str], root: Path) -> None:
        self.recipe, self.common, self.root = recipe, common, root
        self.done: dict[tuple[Any, ...], tuple[Path, float, float]] = {}

    def train(self, options: tuple[str, ...], seed: int, epochs: int | None = None) -> tuple[Path, float, float]:
        """Returns the run's folder, the CPU seconds, and the training images a CPU second."""
        key = (options, seed, epochs)
        if key not in self.done:
            arguments = ["fit", "--config", self.recipe, *self.common, *options, f"--seed_everything={seed}"]
            arguments += [f"--run.root={self.root}", *([f"--trainer.max_epochs={epochs}"] if epochs else [])]
            start = time.process_time()
            trainer = run_trainer(arguments).trainer
            seconds = time.process_time() - start
            images = trainer.global_step * trainer.datamodule.batch_size  # type: ignore[attr-defined]
            self.done[key] = Path(trainer.log_dir or ""), seconds, images / seconds
        return self.done[key]

    def test(self, row: Row, seed: int, epochs: int) -> dict[str, float]:
        """Trains a row's members and measures them on the test split."""
        if row.members == 1:
            runs = [self.train(row.options, seed)]
        else:
            part = max(1, epochs // row.members)
            runs = [self.train(row.options, 100 * (seed + 1) + index, part) for index in range(row.members)]
        first, *others = [str(folder / "checkpoints" / f"{row.checkpoint}.ckpt") for folder, _, _ in runs]
        options = [f"--model.ensemble={json.dumps(others)}"] if others else []
        config = ["--config", str(runs[0][0] / "config.yaml")]
        trainer = run_trainer(["test", *config, f"--ckpt_path={first}", *options, *row.test]).trainer
        result = {name: float(trainer.callback_metrics[f"test/{name}"]) for name in METRICS}
        result["cpu_seconds"] = sum(seconds for _, seconds, _ in runs)
        return result | {"images_per_cpu_second": runs[0][2]}


def table(rows: list[Row], results: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation of each row, as a Markdown table."""
    lines = ["| | accuracy % | NLL | Brier | ECE | CPU seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = []
        for name, scale, digits in (("acc", 100, 2), ("nll", 1, 3), ("brier", 1, 3), ("ece", 1, 3)):
            values = [scale * result[name] for result in results[row.name]]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        seconds = statistics.mean(result["cpu_seconds"] for result in results[row.name])
        lines.append(f"| {row.name} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*sorted(TABLES), "resnet_speed"])
    parser.add_argument("--data", default="FashionMNIST", help="data module of the zoo")
    parser.add_argument("--root", default="data", help="folder of the dataset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--precision", default="32-true", help="bf16-mixed where the device has it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", nargs="+", help="only those whose names begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.table == "resnet_speed":
        print(speed())
        return
    os.environ.setdefault("WANDB_MODE", "disabled")
    recipe = f"{arguments.table.split('_')[0]}.yaml"
    common = [f"--data={arguments.data}", f"--data.root={arguments.root}", "--trainer.enable_progress_bar=false"]
    common += ["--trainer.enable_model_summary=false", f"--trainer.precision={arguments.precision}"]
    rows = [r for r in TABLES[arguments.table] if not arguments.rows or r.name.startswith(tuple(arguments.rows))]
    results: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.epochs:
            common.append(f"--trainer.max_epochs={arguments.epochs}")
        runs = Runs(recipe, common, Path(folder))
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for row in rows:
                result = runs.test(row, seed, arguments.epochs or recipe_epochs(recipe))
                results[row.name].append(result)
                rounded = {name: round(value, 4) for name, value in result.items()}
                print(json.dumps({"row": row.name, "seed": seed, **rounded}), flush=True)
    print(table(rows, results))


def speed(rounds: int = 9, batch: int = 128) -> str:
    """Images a CPU second of the recipe's network in training, as what changes the speed alone is changed."""
    variants = {
        "fp32": {},
        "channels_last": {"channels_last": True},
        "bf16": {"bf16": True},
        "channels_last, bf16": {"channels_last": True, "bf16": True},
        "channels_last, compile": {"channels_last": True, "compile": True},
    }
    x, y = torch.rand(batch, 1, 28, 28) * 2 - 1, torch.randint(10, (batch,))
    steps = {name: _training_step(x, y, **options) for name, options in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 3):
        for name, step in steps.items():  # in turn, so that what else the machine does hits all alike
            start = time.process_time()
            step()
            if number >= 3:
                seconds[name].append(time.process_time() - start)
    rates = {name: batch / statistics.median(values) for name, values in seconds.items()}
    lines = [f"| {name} | {rate:.0f} | {rate / rates['fp32']:.2f} |" for name, rate in rates.items()]
    return "\n".join(["| | images a CPU second | gain |", "| --- | --- | --- |", *lines])


def _training_step(
    x: torch.Tensor, y: torch.Tensor, channels_last: bool = False, bf16: bool = False, compile: bool = False
) -> Callable[[], None]:
    network: torch.nn.Module = PooledResNet(1, 10, 8, (32, 64, 128))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if compile:
        network.compile()

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = network(x)
        torch.nn.functional.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def recipe_epochs(recipe: str) -> int:
    """How many epochs a recipe trains for at most."""
    import yaml

    path = Path(__file__).parent.parent / "zoo" / "configs" / recipe
    return yaml.safe_load(path.read_text())["trainer"]["max_epochs"]


if __name__ == "__main__":
    main()
