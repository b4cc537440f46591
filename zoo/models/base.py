"""What every model of the zoo adds to a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo._lightning import HookNames, unscaled_by_step
from zoo.checkpoints.format import Origin, TrainingData, describe_model
from zoo.checkpoints.reading import load_as
from zoo.checkpoints.restoring import check_optimizers, check_restorable
from zoo.contracts import attached_trainer, data_of
from zoo.distributed.fsdp import shard
from zoo.errors import UserError, check_choice
from zoo.metrics import WindowedMetrics
from zoo.models.ema import EMA
from zoo.models.precision import check_precision, keep_precision
from zoo.models.statistics import as_in_training, has_samples, training_batches
from zoo.optim import LRSchedulerCallable, OptimizerCallable, build_optimizer
from zoo.seeding import capture_random_state, gather_random_states, restore_random_state
from zoo.sharing.mixin import PretrainedMixin

#: Whether a network is compiled, or in which mode of `torch.compile`.
Compile = bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


def check_compile(value: Compile) -> Compile:
    """Returns the value; raises a `UserError` if it is no mode of `torch.compile`."""
    if not isinstance(value, bool):
        check_choice("compile", value, ("true", "false", *get_args(get_args(Compile)[1])))
    return value


class ZooModule(HookNames, PretrainedMixin, LightningModule):
    """Base of the models: one optimizer for `network`, its moving average, and checkpoints that resume exactly.

    A subclass sets `network`, `optimizer` and `lr_scheduler`, and may set the other attributes. With manual
    optimization it overrides `configure_optimizers` and updates `ema` itself.

    Attributes:
        network: network that is trained.
        ema: moving average of its weights, or None.
        optimizer: factory of the optimizer.
        lr_scheduler: factory of the learning-rate schedule, or None.
        layer_decay: ratio of the learning rates of neighboring layers.
        trained_on: what is known of the training data: names of classes, preprocessing of pictures. Taken from the data
            module in `fit`, and stored in checkpoints; set it for training without a data module.
        origin: checkpoint that the model was loaded from by `zoo.load`, or None.
        compile_network: compile the network with torch.compile before training: whether, or in which mode.
        window: means that are logged every `log_every_n_steps` batches, or None.
    """

    #: Whether a sample is a sequence of tokens; else it is an image or a point.
    tokens: bool = False
    #: Attribute that holds the network of which `ema` is the average.
    averaged_from: str = "network"
    network: nn.Module
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None = None
    layer_decay: float = 1.0
    ema: EMA | None
    trained_on: TrainingData = TrainingData()
    origin: Origin | None = None
    compile_network: Compile = False
    window: WindowedMetrics | None = None
    _images_since_step = 0
    _resumed: dict[str, Any] | None = None
    _restored: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.ema = None  # not a class attribute, which would hide a submodule of this name
        self._indices = torch.arange(0)

    # Setting up

    def configure_model(self) -> None:
        trainer = attached_trainer(self)
        if trainer is not None and isinstance(trainer.strategy, ModelParallelStrategy):
            shard(self, self.sharded_networks())

    def sharded_networks(self) -> list[nn.Module]:
        """Networks that FSDP shards, each of which is called as a whole."""
        return [self.network, *([] if self.ema is None else [self.ema.network])]

    def setup(self, stage: str) -> None:
        trainer = attached_trainer(self)
        data = data_of(trainer)
        if data is not None and (stage == "fit" or self.trained_on == TrainingData()):
            self.trained_on = TrainingData.of(data)
        if stage == "fit" and trainer is not None:
            check_precision(trainer)
        if stage == "fit" and self.compile_network:
            self.network.compile(mode=None if self.compile_network is True else self.compile_network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # The model's own buffers, such as a temperature, stay in float32 when its networks become half precision.
        return super()._apply(keep_precision(fn, self._buffers.values()), recurse)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.optimizer, self.lr_scheduler, self.network, self.trainer, self.layer_decay)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision):
            # Lightning refuses to clip for fused optimizers, whose step removes the loss scale. bfloat16 has no scale,
            # and a step leaves gradients alone whose scale has been removed before.
            if (
                gradient_clip_val
                and plugin.scaler is not None
                and unscaled_by_step(self.trainer, optimizer) is not None
            ):
                plugin.scaler.unscale_(optimizer)
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Training

    def on_fit_start(self) -> None:
        self._check_optimizers()

    def _check_optimizers(self) -> None:
        restored, self._restored = self._restored, None
        if restored is not None:
            check_optimizers(restored, self.trainer)

    def on_train_start(self) -> None:
        # Lightning seeds all ranks alike, so that they start from the same parameters. From here on each rank needs its
        # own noise, dropout masks and augmentations; rank 0 draws what a single process does.
        if self.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)
        self._images_since_step = 0
        if self.ema is not None:
            self.ema.start()  # layers may have been replaced, as by sync_batchnorm
        self._set_optimizer_mode(training=True)
        if self.window:
            self.window.start()
        if self._resumed is not None:
            self._resume(self._resumed)
            self._resumed = None

    def count_images(self, images: int) -> None:
        """Counts the images of a training batch, for the half-life of the moving average."""
        self._images_since_step += images

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()
        if self.ema is not None:
            self.ema.update(self.network, self._images_since_step * self.trainer.world_size)
        self._images_since_step = 0

    def after_optimizer_step(self) -> None:
        """Called after every optimizer step, before the moving average is updated; for constraints on parameters."""

    def run_averaged(self, batch: Any) -> None:
        """Runs the averaged network on a training batch as in training, to measure its batch normalization."""
        raise UserError(f"{type(self).__name__} averages a network with batch normalization: implement run_averaged")

    def measure_statistics(self) -> None:
        """Measures the averaged network's running statistics of batch normalization, if its weights have changed.

        On samples without an index, such as those of an IterableDataset, they remain those of the trained network.
        """
        if self.ema is not None and self.ema.stale and has_samples(self):
            with as_in_training(self):
                self.ema.measure(training_batches(self), self.run_averaged)

    def on_validation_start(self) -> None:
        self._set_optimizer_mode(training=False)
        self.measure_statistics()

    def on_validation_end(self) -> None:
        self._set_optimizer_mode(training=self.trainer.state.fn == TrainerFn.FITTING)

    def on_train_end(self) -> None:
        self._set_optimizer_mode(training=False)
        self.measure_statistics()

    def _set_optimizer_mode(self, training: bool) -> None:
        """Calls `train` or `eval` of the optimizers that have them.

        A schedule-free optimizer (Defazio et al. 2024, arXiv 2405.15682) steps at other weights than those that are
        validated and saved, and must be told which to put into the network.
        """
        trainer = attached_trainer(self)
        for optimizer in trainer.optimizers if trainer is not None else []:
            switch = getattr(optimizer, "train" if training else "eval", None)
            if callable(switch):
                switch()

    # Evaluation

    def _find_indices(self, n: int, batch_idx: int) -> None:
        """Finds the indices (n,) of a batch's samples in the split, which is divided over the processes in turn.

        Noise and dropout masks in evaluation follow from them, so that metrics do not depend on the number of
        processes.
        """
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        start = int(self._indices[-1]) + ranks if batch_idx else rank
        self._indices = start + torch.arange(n) * ranks

    # Checkpoints

    def averaged_state_dict(self) -> dict[str, Any]:
        """State dict in which the trained network has the averaged weights, and shares their memory.

        Predictions and samples are those of the average either way; a training that starts here starts from it.
        Without a moving average this is the state dict.
        """
        state = self.state_dict()
        if self.ema is None:
            return state
        averages = {name: state[f"ema.network.{name}"] for name in self.ema.network.state_dict()}
        return state | {f"{self.averaged_from}.{name}": average for name, average in averages.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = attached_trainer(self)
        checkpoint.update(describe_model(self, trainer))
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            self.measure_statistics()  # in place: the tensors of the checkpoint's state_dict are these
            checkpoint["training"] = {
                "random": gather_random_states(capture_random_state(self.device)),
                "window": self.window.state_dict() if self.window else None,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = attached_trainer(self)
        if trainer is not None:
            check_restorable(checkpoint, trainer)
            self._restored = checkpoint if trainer.state.fn == TrainerFn.FITTING else None
            if trainer.strategy.restore_checkpoint_after_setup:  # else there are no optimizers before on_fit_start
                self._check_optimizers()
        self.trained_on = TrainingData.parse(checkpoint.get("data") or {})
        # Restored only by a Trainer that resumes; `load_from_checkpoint` loads the weights alone.
        self._resumed = checkpoint.get("training") if trainer is not None else None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # Lightning's is no classmethod for mypy
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a model from its checkpoint, see `zoo.load`; the class is this one.

        Args:
            checkpoint_path: path to the checkpoint.
            map_location: device of the model (default: the CPU).
            hparams_file: not supported; give the arguments.
            strict: whether the state must fit exactly (default: as the class has it).
            weights_only: always true.
            **kwargs: arguments of the class, instead of those in the checkpoint.

        Raises:
            UserError: the file is missing, damaged, or holds another model.
        """
        if hparams_file is not None or weights_only is False:
            raise UserError("load_from_checkpoint takes no hparams_file, and weights_only is always true")
        model = load_as(cls, checkpoint_path, strict, **kwargs)
        return model if map_location is None else model.to(map_location)

    def _resume(self, state: dict[str, Any]) -> None:
        """Restores random states and the unfinished window of means.

        Raises:
            UserError: they are damaged.
        """
        try:
            self._restore(state)
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"the random states or the window in the checkpoint are damaged: {error}") from error

    def _restore(self, state: dict[str, Any]) -> None:
        processes = len(state["random"])
        if processes == self.trainer.world_size:
            restore_random_state(state["random"][self.global_rank], self.device)
        else:
            rank_zero_info(
                f"The checkpoint is of {processes} processes and this run has {self.trainer.world_size}, so its random "
                "numbers differ from those of the interrupted run"
            )
        if self.window and state["window"] and self.global_rank == 0:
            window = {name: total.to(self.device) for name, total in state["window"]["sums"].items()}
            self.window.load_state_dict({**state["window"], "sums": window})


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the context; afterwards every submodule is in its previous mode."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in training.items():
            m.training = mode
