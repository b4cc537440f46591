"""Number of CPU threads that torch computes with, chosen by the size of the layers.

Torch starts as many threads as there are cores. Small layers gain nothing by them, while the threads that wait for the
next operator keep their cores busy: the GAN on digits takes 1.9 times the CPU time with two, and no less time.

The rule is Amdahl's law. A layer of M multiply-adds has a serial part (Python, the launch of its operators, those that
one thread computes), s, and a part that n threads share, p = 3 M / r at r multiply-adds a second of one core: one pass
forward, two backward. n threads are (s + p) / (s + p / n) times as fast. As long as that is at least two thirds of n,
n is at most 1.5 + 0.5 p / s. The constants are those of one core of a server (see docs/results/cost.md): r = 75e9, and
s = 0.3 ms. Others move the limits between numbers of threads, of which neighbors are nearly as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo._lightning import compiled_modules
from zoo.errors import UserError

RATE = 75e9  # multiply-adds a second of one core
SERIAL = 0.3e-3  # seconds of the part of a layer that threads do not share, in all passes of a training step
EFFICIENCY = 2 / 3  # least gain of n threads, as a fraction of n
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


class ChooseThreads(Callback):
    """Trains with as many threads as the layers have work for, at most as many as torch has at the start.

    The first batch is computed with one thread, and its layers are counted; the others have the number of threads that
    follows from it. Checkpoints hold the number, and a resumed run has it from its start. It is left alone with several
    processes, among which Lightning divides the cores, on GPUs, and for compiled networks.

    Args:
        active: False if the user has chosen the number of threads.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self._chosen = 0  # 0: not yet
        self._limit = 0  # threads that there were before the run; 0 outside of it
        self._work: list[float] = []
        self._handles: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"threads": self._chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        threads = state_dict.get("threads")
        if not (isinstance(threads, int) and threads >= 0):
            raise UserError(f"the number of threads in the checkpoint is {threads!r:.50}, not a whole number")
        self._chosen = threads

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        alone = trainer.world_size == 1 and isinstance(trainer.accelerator, CPUAccelerator)
        if stage == "fit" and self.active and alone and torch.get_num_threads() > 1:
            self._limit = torch.get_num_threads()
            torch.set_num_threads(1)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._limit and self._chosen:
            self._apply()
        elif self._limit and compiled_modules(pl_module):  # hooks would have it compiled again
            torch.set_num_threads(self._limit)
            self._limit = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._limit and not self._chosen:
            self._work = []
            self._handles = count_multiply_adds(pl_module, self._work)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._handles:
            return
        self._remove_hooks()
        mean = sum(self._work) / len(self._work) if self._work else 0.0
        self._chosen = min(useful_threads(mean), self._limit) if self._work else self._limit
        self._apply()
        if self._chosen < self._limit:
            rank_zero_info(
                f"Training with {self._chosen} of {self._limit} threads: a layer has {mean / 1e6:,.1f} million "
                "multiply-adds on average. For another number, give --threads or set OMP_NUM_THREADS"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _apply(self) -> None:
        torch.set_num_threads(min(self._chosen, self._limit))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _restore(self) -> None:
        self._remove_hooks()
        if self._limit:
            torch.set_num_threads(self._limit)
            self._limit = 0


def useful_threads(multiply_adds: float) -> int:
    """Number of threads that layers of this size have work for.

    Args:
        multiply_adds: multiply-adds of one pass through a layer with a batch, mean over the layers.
    """
    shared = 3 * multiply_adds / RATE
    return max(1, int((SERIAL + shared * (1 - EFFICIENCY)) / (EFFICIENCY * SERIAL)))


def count_multiply_adds(model: nn.Module, counts: list[float]) -> list[Any]:
    """Registers hooks that append the multiply-adds of each pass forward through a linear layer or a convolution.

    Args:
        model: model.
        counts: list to append to.

    Returns:
        Handles of the hooks.
    """

    def append(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counts.append(multiply_adds(module, inputs[0], output))

    return [module.register_forward_hook(append) for module in model.modules() if isinstance(module, LAYERS)]


def multiply_adds(layer: Any, x: Tensor, y: Tensor) -> float:
    """Multiply-adds of a linear layer or a convolution that maps x to y."""
    # Each element that a layer maps from (transposed) or to (others) meets the weights of its channel once.
    mapped = x if isinstance(layer, TRANSPOSED) else y
    return mapped.numel() * layer.weight.numel() / layer.weight.shape[0]
