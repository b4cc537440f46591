"""What every model of the zoo has beyond a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo import random_states
from zoo.checkpoints import FORMAT
from zoo.sharding import shard


class TrainingWindow:
    """Means over the last `log_every_n_steps` batches, for a log that would cost more than a small step at each.

    Args:
        unit: what is counted, as in `train/images_per_second`.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.start()

    def start(self) -> None:
        """Forgets what there was; the clock begins now."""
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.timed = 0
        self.clock = time.perf_counter()

    def add(self, module: LightningModule, count: int, **means: Tensor) -> None:
        """Adds a batch's means, and logs those of the window at its end, with learning rate and speed.

        Args:
            module: that is trained, by one optimizer.
            count: units in the batch, over which the means were taken.
            **means: by the names that they are logged under, without `train/`; `loss` is shown beside the progress bar.
        """
        for name, mean in means.items():
            total = mean.detach().float() * count
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.count += count
        self.timed += count
        trainer = module.trainer
        period: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not period or (trainer.fit_loop.total_batch_idx + 1) % period:
            return
        speed = self.timed * trainer.world_size / (time.perf_counter() - self.clock)
        for name, total in self.sums.items():
            module.log(f"train/{name}", total / self.count, prog_bar=name == "loss")
        rate = cast(Any, module.optimizers()).param_groups[0]["lr"]
        module.log_dict({"train/lr": rate, f"train/{self.unit}_per_second": speed})
        self.start()

    def state_dict(self) -> dict[str, Any]:
        """The window as far as it has come."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with a window; the clock begins anew."""
        self.start()
        self.sums, self.count = dict(state["sums"]), state["count"]


class ZooModule(LightningModule):
    """Base of the models: checkpoints say which model they hold, and from which random numbers training goes on.

    A subclass that logs means over several batches has a `TrainingWindow` in `_window`.
    """

    #: Whether a sample is a row of tokens, and not an image or a point.
    tokens: bool = False
    #: Parts of `network` that FSDP shards one by one; of a model without any it is refused.
    sharded: tuple[type[nn.Module], ...] = ()
    _window: TrainingWindow | None = None
    _resumed: dict[str, Any] | None = None

    def configure_model(self) -> None:
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self, self.sharded)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Lightning refuses to clip for fused optimizers, since they take a scale off the gradients by themselves;
            # with bfloat16 there is none.
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["format"] = FORMAT
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            checkpoint["training"] = {
                "random": random_states.of_all_processes(random_states.capture(self.device)),
                "window": self._window.state_dict() if self._window else None,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Only for a Trainer that goes on with it: a model that is read from a file starts something of its own.
        self._resumed = checkpoint.get("training") if self._trainer is not None else None

    def on_train_start(self) -> None:
        # Lightning seeds all ranks alike, so that they start from the same parameters; from here on they must not
        # draw the same noise, dropout masks and augmentations. The first rank draws what a single process does.
        if self.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)
        if self._window:
            self._window.start()
        if self._resumed is not None:
            self._go_on(self._resumed)
            self._resumed = None

    def _go_on(self, state: dict[str, Any]) -> None:
        """Random numbers and means of the window as they were when the checkpoint was written."""
        processes = len(state["random"])
        if processes == self.trainer.world_size:
            random_states.restore(state["random"][self.global_rank], self.device)
        else:
            rank_zero_info(
                f"The checkpoint is of {processes} processes and there are {self.trainer.world_size}, so training goes "
                "on with other random numbers"
            )
        if self._window and state["window"] and self.global_rank == 0:
            window = {name: total.to(self.device) for name, total in state["window"]["sums"].items()}
            self._window.load_state_dict({**state["window"], "sums": window})


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; outside, every submodule is in the mode that it was in before."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in training.items():
            m.training = mode
