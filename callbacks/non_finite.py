"""Stops training on NaN or Inf and reports the first non-finite tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from zoo.errors import NonFiniteError, check_at_least

MOST = 1000  # losses kept until the next check, at most


class Observation(NamedTuple):
    """A loss, or the largest absolute value of a tensor, at a step."""

    what: str
    step: int
    value: Tensor
    loss: bool = False


class StopOnNonFinite(Callback):
    """Stops training if a loss, gradient or parameter is NaN or Inf, and reports which was the first.

    For any LightningModule, also with manual optimization. The command line adds it to every `fit`.

    A check synchronizes with the device, so it runs once in `every_n_steps` batches, and before every validation and
    checkpoint: a checkpoint with non-finite parameters is never written. The losses of all batches are kept until the
    next check, so the step of the first non-finite loss is exact. Gradients and parameters are checked only in the
    batch of a check; to find the first one exactly, resume from the last checkpoint with `every_n_steps` 1.

    With 16-bit gradient scaling gradients overflow occasionally and the step is skipped; there, only non-finite losses
    in all batches since the last check, or a non-finite parameter, stop the run.

    EarlyStopping's `check_finite` checks the monitored metric after validation and ends the run normally; this callback
    is earlier and raises an error.

    Args:
        every_n_steps: batches between two checks; by default the Trainer's log_every_n_steps; 0 for no checks.

    Raises:
        NonFiniteError: during training, on all ranks.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        check_at_least(0, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._step = 0
        self._due = False
        self._last_good = 0
        self._backwards = 0  # in this batch
        self._observations: list[Observation] = []  # since the last check

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._observations, self._last_good = [], trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step, self._backwards = trainer.global_step + 1, 0
        given = self.every_n_steps
        period: int = trainer.log_every_n_steps if given is None else given  # type: ignore[attr-defined]
        self._due = (period > 0 and (trainer.fit_loop.total_batch_idx + 1) % period == 0) or len(
            self._observations
        ) > MOST

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.every_n_steps != 0:
            self._backwards += 1
            what = "the loss" if self._backwards == 1 else f"loss {self._backwards} of the batch"
            self._observations.append(Observation(what, self._step, loss.detach(), loss=True))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._due or _scales(trainer):
            return
        stepping = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if id(p) in stepping}
        self._note("the gradient of", {name: grad for name, grad in gradients.items() if grad is not None})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._due:
            self._check(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def _note(self, what: str, tensors: dict[str, Tensor]) -> None:
        """Keeps the largest absolute values, which are NaN if any element is, without synchronizing with the device."""
        local = {name: getattr(t, "to_local", lambda t=t: t)().detach() for name, t in tensors.items()}
        filled = {name: t for name, t in local.items() if t.numel()}
        if filled:
            largest = largest_values(list(filled.values()))
            self._observations += [
                Observation(f"{what} {name}", self._step, n) for name, n in zip(filled, largest, strict=True)
            ]

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if self.every_n_steps == 0 or trainer.state.fn != TrainerFn.FITTING:
            return
        self._note("the parameter", dict(module.named_parameters()))
        fault = _first_fault(self._observations, _scales(trainer))
        self._observations = []
        # On all ranks, which would otherwise wait for this one forever.
        if trainer.strategy.reduce_boolean_decision(fault is not None, all=False):
            raise NonFiniteError(f"{self._describe(fault)}; {_kept(trainer)}; {_remedy(module)}")
        self._last_good = self._step

    def _describe(self, fault: Observation | None) -> str:
        if fault is None:
            return f"a loss, gradient or parameter became NaN or Inf at step {self._step} on another rank"
        if fault.loss or self._last_good >= fault.step - 1:
            return f"{fault.what} became {fault.value.item()} at step {fault.step}"
        finite = f"all values were finite at step {self._last_good}"
        return f"{fault.what} is {fault.value.item()} at step {fault.step} ({finite})"


def largest_values(tensors: list[Tensor]) -> list[Tensor]:
    """Largest absolute value of each tensor, NaN if any element is."""
    if all(t.device.type == "cpu" and t.layout == torch.strided and t.is_floating_point() for t in tensors):
        # There the maximum norm takes ten times as long, a fiftieth of the run of an MLP that checks every 50 steps.
        return [torch.stack(torch.aminmax(t)).abs().amax() for t in tensors]
    return list(torch._foreach_norm(tensors, ord=math.inf))


def _first_fault(observations: list[Observation], scaled: bool) -> Observation | None:
    if not observations:
        return None
    device = observations[0].value.device
    finite = torch.stack([s.value.float().to(device) for s in observations]).isfinite().tolist()  # one synchronization
    faults = [s for s, good in zip(observations, finite, strict=True) if not good]
    if scaled and any(good for s, good in zip(observations, finite, strict=True) if s.loss):
        faults = [s for s in faults if not s.loss]
    return faults[0] if faults else None


def _scales(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _kept(trainer: Trainer) -> str:
    """Path of the newest checkpoint, in words; only checkpoints with finite parameters are written."""
    # From the folder: ModelCheckpoint sets a path before the file is written.
    folders = {Path(folder) for c in trainer.checkpoint_callbacks if (folder := getattr(c, "dirpath", None))}
    paths = [path for folder in folders for path in folder.glob("*.ckpt") if path.is_file()]
    if not paths:
        return "no checkpoint had been written"
    return f"the last good checkpoint is {_relative(max(paths, key=lambda path: path.stat().st_mtime_ns))}"


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _remedy(module: LightningModule) -> str:
    clip = "--trainer.gradient_clip_val" if module.automatic_optimization else "--model.gradient_clip_val"
    return f"try a lower learning rate, {clip} or --trainer.precision 32"
