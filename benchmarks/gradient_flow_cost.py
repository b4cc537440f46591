"""Share of the training time that GradientFlow takes at its default interval.

Two networks of 20 layers, an MLP and a convolutional one with batch norm, are trained with and without the callback in
turn, so that other load on the machine affects both alike. Time on the CPU is that of this process. A block is one
interval: one measured step and all steps up to the next one. The share is the median block with the callback divided by
the median block without it, minus 1. Its error is of the order of the spread of the blocks, which is printed; therefore
the time inside the callback's methods and hooks is measured as well, which is exact but does not include Lightning's
overhead of calling them. Usage:

    python -m benchmarks.gradient_flow_cost
    python -m benchmarks.gradient_flow_cost --accelerator gpu --rounds 20
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.output import new_parser, report
from zoo.callbacks import GradientFlow

GPU = torch.cuda.is_available()


def mlp(depth: int = 20, width: int = 256) -> nn.Module:
    """Fully connected network, (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolutions(depth: int = 20, channels: int = 32) -> nn.Module:
    """Convolutional network with batch norm on 8x8 positions, (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 4, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Classifier(LightningModule):
    """Trains a network on random images with SGD, the optimizer with the fastest step."""

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
    """CPU seconds of the process; elapsed seconds if there is a GPU."""
    if GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class BlockClock(Callback):
    """Seconds of each block of steps, and the part of them inside GradientFlow; the first block is left out.

    Args:
        steps: steps per block.
        spent: seconds of each call into GradientFlow, which `timed_calls` appends.
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


@contextmanager
def timed_calls(spent: list[float]) -> Iterator[None]:
    """Appends the seconds of each call of GradientFlow's methods, and of hooks on modules and optimizers, to `spent`.

    The networks here have no hooks but GradientFlow's.
    """
    methods = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
    registrations = [(nn.Module, "register_forward_hook"), (Optimizer, "register_step_post_hook")]
    with ExitStack() as stack:
        for name in methods:
            stack.enter_context(patch.object(GradientFlow, name, _timed(getattr(GradientFlow, name), spent)))
        for owner, name in registrations:
            stack.enter_context(patch.object(owner, name, _registers_timed(getattr(owner, name), spent)))
        yield


def _timed(call: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    def timed(*args: Any) -> None:
        start = clock()
        call(*args)
        spent.append(clock() - start)

    return timed


def _registers_timed(register: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def register_timed(owner: Any, hook: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        return register(owner, _timed(hook, spent), *args, **kwargs)

    return register_timed


def train(network: nn.Module, callbacks: list[Callback], options: argparse.Namespace, folder: str) -> None:
    """Trains for `options.blocks` blocks after one of warm-up."""
    model = Classifier(network, options.batch_size, batches=options.period)
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=1,
        max_epochs=-1,
        max_steps=(options.blocks + 1) * options.period + 1,  # the start of the last step ends the last block
        callbacks=callbacks,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)


def compare(name: str, new_network: Callable[[], nn.Module], options: argparse.Namespace, spent: list[float]) -> None:
    """Trains with and without the callback in turn, and prints its cost."""
    blocks: dict[bool, list[float]] = {False: [], True: []}
    inside: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * options.rounds):
            measured = number % 2 == 1
            clock_of_blocks = BlockClock(options.period, spent)
            torch.manual_seed(0)
            flow = [GradientFlow(options.period)] if measured else []
            train(new_network(), [clock_of_blocks, *flow], options, folder)
            blocks[measured] += clock_of_blocks.blocks
            inside += clock_of_blocks.inside if measured else []
    without, with_callback, within = (statistics.median(values) for values in (blocks[False], blocks[True], inside))
    quarters = statistics.quantiles(blocks[False], n=4)
    print(
        f"{name}, {options.batch_size} images per step, medians of {len(inside)} blocks of {options.period} steps: "
        f"{1000 * without / options.period:.2f} ms per step without the callback, "
        f"{1000 * with_callback / options.period:.2f} with it: {100 * (with_callback / without - 1):+.2f}% "
        f"(interquartile range of the blocks without it: {100 * (quarters[2] - quarters[0]) / without:.1f}%)"
    )
    if any(inside):
        report(name, share_inside=within / with_callback, share=with_callback / without - 1)
        print(f"  inside the callback {1000 * within:.2f} ms per block: {100 * within / with_callback:.2f}%")


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"], help="accelerator of the Trainer")
    parser.add_argument("--rounds", type=int, default=4, help="runs with the callback, and runs without it")
    parser.add_argument("--blocks", type=int, default=3, help="timed blocks per run, after one of warm-up")
    parser.add_argument("--period", type=int, default=50, help="steps from one measurement to the next")
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch")
    options = parser.parse_args(args)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spent: list[float] = []
    with ExitStack() as stack:
        if options.accelerator == "cpu":  # on a GPU most of the time inside is waiting for the device
            stack.enter_context(timed_calls(spent))
        compare("MLP", mlp, options, spent)
        compare("convolutional", convolutions, options, spent)


if __name__ == "__main__":
    main()
