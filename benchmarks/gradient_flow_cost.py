"""What GradientFlow costs: its share of the training time, at the period that it has by default.

Two networks of 20 layers, an MLP and a convolutional one with batch norm, are trained with and without the callback
in turn, so that whatever else the machine does meets both alike. On the CPU, time is the processor's, which other
programs' share of it does not count in. A block is one period: one step that is measured and all others that are not.
The share is the median block with the callback by the median block without it, less 1; its error is of the order of
the spread of the blocks, which is printed, so the time spent inside the callback's methods and hooks is measured as
well, which is exact but leaves out what Lightning adds to call them. Run it as

    python benchmarks/gradient_flow_cost.py
    python benchmarks/gradient_flow_cost.py --accelerator gpu --rounds 20
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import GradientFlow, gradient_flow

GPU = torch.cuda.is_available()


def mlp(depth: int = 20, width: int = 256) -> nn.Module:
    """Fully connected, (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolutions(depth: int = 20, channels: int = 32) -> nn.Module:
    """Convolutional with batch norm, on a grid of 8 by 8, (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 4, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Classifier(LightningModule):
    """Trains the network on random images with SGD, the optimizer whose step is the shortest."""

    def __init__(self, network: nn.Module, batch_size: int, batches: int) -> None:
        super().__init__()
        self.network = network
        self.batch_size = batch_size
        self.data = TensorDataset(torch.randn(batches * batch_size, 3, 32, 32), torch.arange(batches * batch_size) % 10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, self.batch_size)


def clock() -> float:
    """Seconds of the processor, or of the wall where there is a GPU to wait for."""
    if GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class BlockClock(Callback):
    """Seconds that each block of steps took, and how many of them were spent in the callback, without the first block.

    Args:
        steps: of a block.
        spent: seconds of each call into the callback.
    """

    def __init__(self, steps: int, spent: list[float]) -> None:
        self.steps = steps
        self.spent = spent
        self.blocks: list[float] = []
        self.inside: list[float] = []
        self._start = math.nan

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.steps == 0:
            now = clock()
            if trainer.global_step > self.steps:
                self.blocks.append(now - self._start)
                self.inside.append(sum(self.spent))
            self.spent.clear()
            self._start = now


def time_inside(spent: list[float]) -> None:
    """From now on, appends the seconds of each call of the callback's methods and of its hooks."""
    methods = [
        (GradientFlow, f"on_{name}") for name in ("train_batch_start", "before_optimizer_step", "train_batch_end")
    ]
    for owner, name in [*methods, (gradient_flow._Probe, "_note_dead"), (gradient_flow._OptimizerStep, "_after")]:
        setattr(owner, name, _timed(getattr(owner, name), spent))


def _timed(call: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    def timed(*args: Any) -> None:
        start = clock()
        call(*args)
        spent.append(clock() - start)

    return timed


def train(network: nn.Module, flow: list[Callback], watch: BlockClock, args: argparse.Namespace, folder: str) -> None:
    """One short run, timed by `watch`."""
    model = Classifier(network, args.batch_size, batches=args.period)
    trainer = Trainer(
        accelerator=args.accelerator,
        devices=1,
        max_epochs=-1,
        max_steps=(args.blocks + 1) * args.period + 1,  # the start of the last step ends the last block
        callbacks=[watch, *flow],
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)


def compare(name: str, network: Callable[[], nn.Module], args: argparse.Namespace, spent: list[float]) -> None:
    """Trains with and without the callback in turn, and prints what it costs."""
    blocks: dict[bool, list[float]] = {False: [], True: []}
    inside: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * args.rounds):
            with_flow = number % 2 == 1
            flow: list[Callback] = [GradientFlow(args.period)] if with_flow else []
            watch = BlockClock(args.period, spent)
            torch.manual_seed(0)
            train(network(), flow, watch, args, folder)
            blocks[with_flow] += watch.blocks
            inside += watch.inside if with_flow else []
    without, with_callback, within = (statistics.median(values) for values in (blocks[False], blocks[True], inside))
    quarters = statistics.quantiles(blocks[False], n=4)
    print(
        f"{name}, {args.batch_size} images a step, medians of {len(inside)} blocks of {args.period} steps: "
        f"{1000 * without / args.period:.2f} ms a step without, {1000 * with_callback / args.period:.2f} with the "
        f"callback: {100 * (with_callback / without - 1):+.2f}% (half of the blocks without it lie in a range of "
        f"{100 * (quarters[2] - quarters[0]) / without:.1f}%)"
    )
    if any(inside):
        print(f"  inside the callback {1000 * within:.2f} ms a block: {100 * within / with_callback:.2f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--rounds", type=int, default=4, help="runs with the callback, and as many without")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of each run that count, after one to warm up")
    parser.add_argument("--period", type=int, default=50, help="steps from one measurement to the next")
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spent: list[float] = []
    if args.accelerator == "cpu":  # elsewhere the time inside is mostly that of waiting for the device
        time_inside(spent)
    compare("MLP", mlp, args, spent)
    compare("convolutions", convolutions, args, spent)


if __name__ == "__main__":
    main()
