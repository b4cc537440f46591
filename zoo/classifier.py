"""The shell that all classifiers share: loss, regularization, moving average, and predictions with their uncertainty.

A classifier of the zoo is a network from images to logits in this shell; `Classifier(network, ...)` wraps any other.
Dropout is taken as bagging (Srivastava et al. 2014, section 1; Gal and Ghahramani 2016, arXiv 1506.02142): at test
time the members of the bag are one network with its weights scaled, or passes with dropout on, or the networks of
several checkpoints, and what is reported belongs to the mean of their probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from zoo.base import TrainingWindow, ZooModule, evaluating
from zoo.checkpoints import load_model
from zoo.ema import EMA
from zoo.errors import UserError, check_at_least
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_optimizer


def adamw(parameters: Any) -> Optimizer:
    """The default optimizer of the classifiers."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


@dataclass
class Predictive:
    """A predictive distribution and its uncertainty, in nats.

    Attributes:
        log_probabilities: of the classes: the logarithm of the mean over the members, (N, C).
        entropy: of the mean, (N,): how uncertain the prediction is.
        mutual_information: between label and member, (N,): the entropy of the mean less the mean of the entropies,
            that is the part of the uncertainty on which the members disagree (Houlsby et al. 2011, arXiv 1112.5745,
            eq. 2); zero for one member.
    """

    log_probabilities: Tensor
    entropy: Tensor
    mutual_information: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Of the classes, the mean over the members, (N, C)."""
        return self.log_probabilities.exp()


def mixup(x: Tensor, y: Tensor, num_classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixes each sample with another one, and their labels alike (Zhang et al. 2018, arXiv 1710.09412).

    Args:
        x: samples, (N, ...).
        y: labels, int64 (N,).
        num_classes: number of labels.
        alpha: of the Beta distribution that the share of the first is drawn from, for every sample.

    Returns:
        Samples (N, ...) and soft labels (N, num_classes).
    """
    share = torch.distributions.Beta(alpha, alpha).sample((len(x),)).to(x)
    other = torch.randperm(len(x), device=x.device)
    labels = F.one_hot(y, num_classes).to(x)
    x = torch.lerp(x[other], x, share.view(-1, *[1] * (x.ndim - 1)))
    return x, torch.lerp(labels[other], labels, share[:, None])


def brier_score(probabilities: Tensor, y: Tensor) -> Tensor:
    """Squared distance between the probabilities (N, C) and the label's certainty, (N,), in [0, 2] (Brier 1950)."""
    return (probabilities - F.one_hot(y, probabilities.shape[1])).square().sum(1)


class Classifier(ZooModule):
    """Trains any network from samples to logits, and tells how certain its predictions are.

    Args:
        network: samples (N, *input_shape), images in [-1, 1], to logits (N, num_classes).
        input_shape: of one sample, (C, H, W) for images or (D,) for points.
        num_classes: number of labels in the data.
        label_smoothing: share of the label's probability that is spread over all classes in the loss.
        mixup: alpha of mixup's Beta distribution, 0 for none.
        ema_half_life: of the weights' moving average, in images; 0 for none. Where there is one, it is what is
            validated, tested and predicted with.
        flip_tta: average the logits of each image and its mirror image at test and prediction; left out on data
            whose labels do not survive a mirror.
        channels_last: memory format of images and convolutions, faster on most devices.
        compile: the network by torch.compile; the first steps take minutes.
        mc_passes: passes with dropout on that are averaged at test and prediction (Monte-Carlo dropout); 0 for one
            pass with dropout off, that is with scaled weights.
        mc_seed: of the dropout masks of these passes.
        ensemble: checkpoints of further classifiers whose probabilities are averaged with this one's at test and
            prediction.
        optimizer: makes the optimizer; its weight decay reaches matrices and kernels, not biases and norms.
        lr_scheduler: makes the learning-rate schedule, stepped with every optimizer step; None for a constant.
    """

    _window: TrainingWindow

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        num_classes: int,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        ema_half_life: float = 0.0,
        flip_tta: bool = False,
        channels_last: bool = False,
        compile: bool = False,
        mc_passes: int = 0,
        mc_seed: int = 0,
        ensemble: list[str] | None = None,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler", "ensemble"])
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
        check_at_least(0, mixup=mixup, ema_half_life=ema_half_life, mc_passes=mc_passes)
        if num_classes < 2:
            raise UserError(f"a classifier needs at least 2 classes, and the data has {num_classes}")
        if mc_passes and not any(isinstance(m, _DropoutNd) and m.p > 0 for m in network.modules()):
            raise UserError(f"mc_passes is {mc_passes}, but the network has no dropout: all passes would be the same")
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.flip_tta = flip_tta
        self.channels_last = channels_last and len(self.input_shape) == 3
        self.compile_network = compile
        self.mc_passes = mc_passes
        self.mc_seed = mc_seed
        self.ensemble = list(ensemble or [])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.network = network.to(memory_format=torch.channels_last) if self.channels_last else network
        self.ema = EMA(self.network, ema_half_life) if ema_half_life > 0 else None
        self._members: list[Classifier] = []  # in a list: the others of the ensemble are no submodules
        self.val_loss, self.val_acc = MeanMetric(), MulticlassAccuracy(num_classes, average="micro")
        self.test_metrics = nn.ModuleDict(
            {
                "acc": MulticlassAccuracy(num_classes, average="micro"),
                "nll": MeanMetric(),
                "brier": MeanMetric(),
                "ece": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
            }
        )
        self._seen = 0  # images since the last optimizer step
        self._window = TrainingWindow("images")

    # Predictions

    def forward(self, x: Tensor) -> Tensor:
        """x (N, *input_shape) to logits (N, num_classes), by the averaged network where there is one."""
        return self._run(self.ema or self.network, x)

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return network(x).float()

    def _log_probabilities(self, x: Tensor) -> Tensor:
        logits = self(x)
        if self.flip_tta and self._mirrors():
            logits = (logits + self(x.flip(-1))) / 2
        return logits.log_softmax(1)

    def _mirrors(self) -> bool:
        """Whether labels survive a mirror, as far as the data module says."""
        data = getattr(self._trainer, "datamodule", None)
        return len(self.input_shape) == 3 and getattr(data, "mirror_symmetric", True)

    def _bag(self, x: Tensor, seed: int) -> Iterator[Tensor]:
        """Log-probabilities (N, C) of each member of the bag, one after the other, so that memory is that of one."""
        for index, model in enumerate([self, *self._members_on(x.device)]):
            if not self.mc_passes:
                yield model._log_probabilities(x)
            for number in range(self.mc_passes):
                with dropout_on(model, seed=hash((self.mc_seed, seed, index, number)) % 2**63):
                    yield model._log_probabilities(x)

    def predictive(self, x: Tensor, seed: int = 0) -> Predictive:
        """The predictive distribution by the bag's members: weight scaling, dropout passes, or an ensemble.

        Modes and global random numbers stay as they were; the same seed and batch give the same numbers.

        Args:
            x: samples, (N, *input_shape).
            seed: of the dropout masks, beside `mc_seed`; a different one for every batch.
        """
        with evaluating(self):
            total, entropies, count = torch.full((), -torch.inf, device=x.device), torch.zeros((), device=x.device), 0
            for log_p in self._bag(x, seed):
                total = torch.logaddexp(total, log_p)
                entropies = entropies + entropy(log_p)
                count += 1
        mean = total - math.log(count)
        return Predictive(mean, entropy(mean), (entropy(mean) - entropies / count).clamp_min(0))

    def _members_on(self, device: torch.device) -> list[Classifier]:
        """The others of the ensemble, read from their checkpoints when they are first needed."""
        if len(self._members) != len(self.ensemble):
            self._members = [self._load_member(path) for path in self.ensemble]
        for member in self._members:
            member.to(device)._trainer = self._trainer
        return self._members

    # Training

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.optimizer, self.lr_scheduler, self.network, self.trainer)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.compile_network:
            self.network.compile()
        if stage in ("test", "predict"):
            self._members_on(self.device)  # what is wrong with them is said before anything is computed

    def _load_member(self, path: str) -> Classifier:
        if not Path(path).is_file():
            raise UserError(f"{path} in ensemble is not a file")
        member = load_model(path)
        if not isinstance(member, Classifier) or member.input_shape != self.input_shape:
            raise UserError(f"{path} in ensemble holds no classifier of samples of the shape {self.input_shape}")
        if member.num_classes != self.num_classes:
            raise UserError(f"{path} in ensemble has {member.num_classes} classes, not {self.num_classes}")
        return member

    def on_train_start(self) -> None:
        super().on_train_start()
        self._seen = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        target: Tensor = y
        if self.mixup:
            x, target = mixup(x, y, self.num_classes, self.mixup)
        logits = self._run(self.network, x)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        self._seen += len(x)
        hits = {} if self.mixup else {"acc": (logits.detach().argmax(1) == y).float().mean()}
        self._window.add(self, len(x), loss=loss, **hits)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.constrain()
        if self.ema is not None:
            self.ema.update(self.network, self._seen * self.trainer.world_size)
        self._seen = 0

    def constrain(self) -> None:
        """Called after every optimizer step, for a subclass that keeps its parameters within bounds."""

    # Validation and test

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.val_loss.update(F.cross_entropy(logits, y, reduction="none"))
        self.val_acc.update(logits, y)
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """Accuracy, negative log-likelihood and Brier score of the mean probabilities, and their calibration error.

        The expected calibration error is Guo et al.'s (2017, arXiv 1706.04599, eq. 3), over 15 equal bins.
        """
        x, y = batch
        predictive = self.predictive(x, seed=batch_idx)
        p = predictive.probabilities
        # Below 1, since torchmetrics has a sixteenth bin for those that are exactly 1.
        values = {
            "acc": (p, y),
            "ece": (p.clamp_max(1 - 2**-24), y),
            "nll": (F.nll_loss(predictive.log_probabilities, y, reduction="none"),),
        }
        for name, arguments in {**values, "brier": (brier_score(p, y),)}.items():
            metric = cast(Any, self.test_metrics[name])
            metric.update(*arguments)
            self.log(f"test/{name}", metric)
        return predictive

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Predictive:
        return self.predictive(batch[0], seed=batch_idx)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Of each row of log-probabilities (N, C), in nats, (N,)."""
    return -(log_probabilities.exp() * log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)).sum(1)


@contextmanager
def dropout_on(module: nn.Module, seed: int) -> Iterator[None]:
    """Dropout, and nothing else, as in training, with masks by `seed`; outside, all is as it was, random states too."""
    layers = [m for m in module.modules() if isinstance(m, _DropoutNd)]
    modes = [layer.training for layer in layers]
    device = next(module.parameters()).device
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        torch.manual_seed(seed)
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer, mode in zip(layers, modes, strict=True):
                layer.training = mode
