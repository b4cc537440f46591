"""Accuracy and calibration of the classifier recipes over several seeds, and the effect of each of their options.

Each row trains the recipe with some options changed, by the command line's own code and for the same number of epochs.
Checkpoints are selected on the validation split; the test split is measured at the end. Usage:

    python -m benchmarks.classifier_quality mlp --root data --seeds 3
    python -m benchmarks.classifier_quality resnet --root data --seeds 3 --precision bf16-mixed
    python -m benchmarks.classifier_quality resnet_options --root data --seeds 1 --epochs 3
    python -m benchmarks.classifier_quality resnet_speed

Each run prints a line of JSON; the table of means and standard deviations over the seeds follows. CPU seconds are those
of the whole process during training, validation and start included. Other options are those of `zoo fit`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import read_recipe, run_recipe
from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo.cli.fit import run_trainer
from zoo.models.resizing import resize
from zoo.models.resnet.network import PooledResNet

METRICS = {"acc": ("accuracy %", 100, 2), "nll": ("NLL", 1, 3), "brier": ("Brier", 1, 3), "ece": ("ECE", 1, 3)}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: label.
        options: options of `fit` that differ from the recipe.
        checkpoint: checkpoint to test, "best" or "last".
        members: number of ensemble members, each trained for its share of the epochs.
        test: options of `test`.
    """

    name: str
    options: tuple[str, ...] = ()
    checkpoint: str = "best"
    members: int = 1
    test: tuple[str, ...] = ()


# Early stopping selects the best checkpoint but does not end the run, as if its patience were just long enough.
NO_STOP = "--trainer.callbacks.patience=1000"
NO_DROPOUT = ("--model.input_dropout=0", "--model.hidden_dropout=0", NO_STOP)
CALIBRATED = ("--model.calibrate=true",)  # at the test, so that the trained network is the same
# The table of the ResNet's options was measured with a first convolution that is trained, on images of full size.
FULL = ("--model.whitening=false", "--model.low_resolution=0")
TABLES = {
    "mlp": [
        Row("no dropout, last epoch", NO_DROPOUT, "last"),
        Row("no dropout, last epoch, calibrated", NO_DROPOUT, "last", test=CALIBRATED),
        Row("no dropout, early stopping", NO_DROPOUT),
        Row("dropout, last epoch", (NO_STOP,), "last"),
        Row("dropout, early stopping", (NO_STOP,)),
        Row("dropout, early stopping, calibrated", (NO_STOP,), test=CALIBRATED),
        Row("dropout, early stopping, 50 MC samples", (NO_STOP,), test=("--model.mc_samples=50",)),
        Row("ensemble of 4 without dropout, 1/4 of the epochs each", NO_DROPOUT, members=4),
    ],
    "resnet": [
        Row("recipe"),
        Row("recipe, calibrated", test=CALIBRATED),
        Row("trained first convolution, images of full size", FULL),
    ],
    "resnet_options": [
        Row("recipe", FULL, "last"),
        Row("no flip TTA", FULL, "last", test=("--model.flip_tta=false",)),
        Row("no EMA", (*FULL, "--model.ema_half_life=0"), "last"),
        Row("no flip augmentation", (*FULL, "--data.augment.flip=false"), "last"),
        Row("crop 2", (*FULL, "--data.augment.crop=2"), "last"),
        Row("no cutout", (*FULL, "--data.augment.cutout=0"), "last"),
        Row("mixup 0.2", (*FULL, "--model.mixup=0.2"), "last"),
        Row("no label smoothing", (*FULL, "--model.label_smoothing=0"), "last"),
        Row("ResNet-8 of He et al., patch size 2", (*FULL, "--model.backbone=cifar", "--model.patch_size=2"), "last"),
        Row("constant learning rate 0.05", (*FULL, "--model.lr_scheduler=null", "--model.optimizer.lr=0.05"), "last"),
    ],
    "vit": [Row("recipe")],
}
SPEED_VARIANTS = {
    "fp32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"bf16": True},
    "channels_last, bf16": {"channels_last": True, "bf16": True},
    "channels_last, bf16, whitening": {"channels_last": True, "bf16": True, "whitening": True},
    "channels_last, bf16, whitening, 20x20 pixels": {
        "channels_last": True,
        "bf16": True,
        "whitening": True,
        "size": 20,
    },
    "channels_last, compile": {"channels_last": True, "compile": True},
}


class Runs:
    """Trains each combination of options once, for all rows that share it.

    Args:
        recipe: name of the recipe.
        common: options of every run.
        root: folder of the runs.
        epochs: length of a run.
    """

    def __init__(self, recipe: str, common: list[str], root: str, epochs: int) -> None:
        self.recipe, self.common, self.root, self.epochs = recipe, common, root, epochs
        self.done: dict[tuple[Any, ...], tuple[Path, float, float]] = {}

    def train(self, options: tuple[str, ...], seed: int, epochs: int) -> tuple[Path, float, float]:
        """Returns the run's folder, its CPU seconds, and the training images per CPU second."""
        key = (options, seed, epochs)
        if key not in self.done:
            length = f"--trainer.max_epochs={epochs}"
            trainer, seconds = run_recipe([self.recipe], self.root, seed, *self.common, *options, length)
            images = trainer.global_step * trainer.datamodule.batch_size  # type: ignore[attr-defined]
            self.done[key] = Path(trainer.log_dir or ""), seconds, images / seconds
        return self.done[key]

    def test(self, row: Row, seed: int) -> dict[str, float]:
        """Trains the members of a row and measures them on the test split."""
        if row.members == 1:
            runs = [self.train(row.options, seed, self.epochs)]
        else:
            share = max(1, self.epochs // row.members)
            runs = [self.train(row.options, 100 * (seed + 1) + index, share) for index in range(row.members)]
        first, *others = [str(folder / "checkpoints" / f"{row.checkpoint}.ckpt") for folder, _, _ in runs]
        ensemble = [f"--model.ensemble={json.dumps(others)}"] if others else []
        config = ["--config", str(runs[0][0] / "config.yaml")]
        trainer = run_trainer(["test", *config, f"--ckpt_path={first}", *ensemble, *row.test]).trainer
        result = {name: float(trainer.callback_metrics[f"test/{name}"]) for name in METRICS}
        result["cpu_seconds"] = sum(seconds for _, seconds, _ in runs)
        return result | {"images_per_cpu_second": runs[0][2]}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation of each row."""
    lines = []
    for name, row in results.items():
        cells = [mean_std([scale * run[key] for run in row], digits) for key, (_, scale, digits) in METRICS.items()]
        lines.append([name, *cells, f"{statistics.mean(run['cpu_seconds'] for run in row):.0f}"])
    return markdown_table(["", *(label for label, _, _ in METRICS.values()), "CPU seconds"], lines)


def speed(names: Sequence[str], rounds: int, batch_size: int, warmup: int = 3) -> str:
    """Training speed of the recipe's network in some of `SPEED_VARIANTS`, as a table.

    The variants take turns, so that other load on the machine affects all of them alike.
    """
    x, y = torch.rand(batch_size, 1, 28, 28) * 2 - 1, torch.randint(10, (batch_size,))
    steps = {name: _training_step(x, y, **SPEED_VARIANTS[name]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + warmup):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number >= warmup:
                seconds[name].append(time.process_time() - start)
    rates = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        report(name, images_per_cpu_second=rate, speedup=rate / rates[names[0]])
    rows = [[name, f"{rate:.0f}", f"{rate / rates[names[0]]:.2f}"] for name, rate in rates.items()]
    return markdown_table(["", "images per CPU second", "speed-up"], rows)


def _training_step(
    x: torch.Tensor,
    y: torch.Tensor,
    channels_last: bool = False,
    bf16: bool = False,
    compile: bool = False,
    whitening: bool = False,
    size: int = 28,
) -> Callable[[], None]:
    network: torch.nn.Module = PooledResNet((1, 28, 28), 10, 8, (32, 64, 128), whitening=whitening)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    x = resize(x, (size, size)) if size < 28 else x
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


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("table", choices=[*TABLES, "resnet_speed"], help="table to measure")
    parser.add_argument("--data", default="FashionMNIST", help="data module")
    parser.add_argument("--root", help="folder of the dataset (default: the data module's own)")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="first random seed")
    parser.add_argument("--epochs", type=int, help="epochs of each run (default: the recipe's)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each variant of resnet_speed")
    parser.add_argument("--batch_size", type=int, default=128, help="images per step of resnet_speed")
    parser.add_argument("--precision", default="32-true", help="precision of training, such as bf16-mixed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--rows", nargs="+", default=[""], help="prefixes of the rows to measure (default: all rows)")
    options, extra = parser.parse_known_args(args)
    torch.set_num_threads(options.threads)
    prefixes = tuple(options.rows)
    if options.table == "resnet_speed":
        print(speed([name for name in SPEED_VARIANTS if name.startswith(prefixes)], options.rounds, options.batch_size))
        return
    rows = [row for row in TABLES[options.table] if row.name.startswith(prefixes)]
    recipe = f"{options.table.split('_')[0]}.yaml"
    common = [f"--data={options.data}", *([f"--data.root={options.root}"] if options.root else [])]
    common += [f"--trainer.precision={options.precision}", *extra]
    results: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(recipe, common, folder, options.epochs or read_recipe(recipe)["trainer"]["max_epochs"])
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for row in rows:
                result = runs.test(row, seed)
                results[row.name].append(result)
                report(row.name, seed, **result)
    print(table(results))


if __name__ == "__main__":
    main()
