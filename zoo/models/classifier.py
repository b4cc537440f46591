"""Base of the classifiers: loss, regularization, and predictions with their uncertainty.

`Classifier` trains any network from samples to logits. Dropout is treated as bagging (Srivastava et al.
2014, section 1; Gal and Ghahramani 2016, arXiv 1506.02142): at test time the ensemble is one network with scaled
weights, several passes with dropout on (Monte Carlo dropout), or the networks of several checkpoints. All metrics are
those of the mean probabilities.

The logits of each network can be divided by a temperature, which is fitted on the validation split (`calibrate`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from zoo.checkpoints.reading import load_model
from zoo.contracts import attached_trainer
from zoo.errors import UserError, check_at_least, check_fraction
from zoo.metrics import Mean, TemperatureFit, TemperatureScaling, WindowedMetrics
from zoo.models.base import Compile, ZooModule, check_compile, eval_mode
from zoo.models.calibration import check_validation, describe, validation_batches
from zoo.models.dropout import DROPOUT_LAYERS, dropout_on
from zoo.models.ema import EMA
from zoo.models.exports import Export, Input, Part
from zoo.models.finetuning import (
    balanced_weights,
    check_finetuning,
    find_backbone,
    follow_unfreezing,
    load_initial_weights,
)
from zoo.models.inputs import input_batches
from zoo.models.networks import build_network, check_output
from zoo.models.precision import cast_to, widen
from zoo.models.predictions import Predictions, entropy
from zoo.models.resizing import resize
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, classifier_optimizer
from zoo.seeding import stream_keys, upload

ClassifierNetworkFactory = Callable[[Sequence[int], int], nn.Module]


def mixup(x: Tensor, y: Tensor, num_classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixes each sample, and its label, with another one of the batch (Zhang et al. 2018, arXiv 1710.09412).

    Args:
        x: samples, (N, ...).
        y: labels, int64 (N,).
        num_classes: number of classes.
        alpha: parameter of the Beta(alpha, alpha) mixing weight, drawn per sample.

    Returns:
        Samples (N, ...) and soft labels (N, num_classes).
    """
    parameter = torch.tensor(alpha, dtype=torch.float32)
    weight = upload(torch.distributions.Beta(parameter, parameter).sample((len(x),)), x.device).to(x.dtype)
    other = torch.randperm(len(x), device=x.device)
    labels = F.one_hot(y, num_classes).to(x)
    x = torch.lerp(x[other], x, weight.view(-1, *[1] * (x.ndim - 1)))
    return x, torch.lerp(labels[other], labels, weight[:, None])


def brier_score(probabilities: Tensor, y: Tensor) -> Tensor:
    """Squared distance between probabilities (N, C) and the one-hot label, (N,), in [0, 2] (Brier 1950)."""
    return (probabilities - F.one_hot(y, probabilities.shape[1])).square().sum(1)


class Classifier(ZooModule):
    """Trains any network from samples to logits, and predicts with uncertainty.

    Args:
        input_shape: shape of a sample, (C, H, W) for images or (D,) for points.
        num_classes: number of classes.
        network: name of a network of the zoo, such as "PooledResNet"; a factory that is handed `(input_shape,
            num_classes)`; or a module. It maps samples (N, *input_shape), images in [-1, 1], to logits (N,
            num_classes).
        init_from: classifier with the same network, from whose weights training starts: path to its checkpoint, to the
            folder of a saved model, or name of a trained model of the zoo. Its last layer is taken over if it has as
            many classes. Later checkpoints do not need the file.
        label_smoothing: probability mass of the label that is spread over all classes in the loss.
        class_weights: weight of each class in the training loss, not in what validation and test measure: a list of
            positive numbers, or "balanced" for n / (k n_c) with n_c of the n training samples in each of k classes.
        mixup: parameter alpha of mixup's Beta distribution; 0 for no mixup.
        low_resolution: ratio by which both sides of training images are reduced in the first part of the run, where
            they cost less; 0 for none. For networks that take images of any size (Howard et al., DAWNBench 2018).
        low_resolution_fraction: length of that part, as a fraction of the run.
        ema_half_life: half-life of the weights' moving average, in images; 0 for no average. The average, if there is
            one, is what is validated, tested and used for predictions.
        flip_tta: average the logits of each image and its mirror image at test and prediction time; ignored for data
            whose classes are not mirror-symmetric.
        calibrate: fit a temperature, by which logits are divided (Guo et al. 2017, arXiv 1706.04599), on the samples of
            each validation; a checkpoint holds that of the last validation before it. A checkpoint without one gets it
            when it is tested, on the validation split. The temperature is fitted for one pass with dropout off.
        channels_last: use the channels-last memory format, which is faster on most devices.
        compile: compile the network with torch.compile; the first steps take minutes. True, or a mode of it, such as
            "reduce-overhead" for CUDA graphs, which launch the operators of a small network together.
        mc_samples: number of passes with dropout on that are averaged at test and prediction time (Monte Carlo
            dropout); 0 for one pass with dropout off.
        mc_seed: random seed of the dropout masks of these passes.
        ensemble: checkpoints of further classifiers whose probabilities are averaged with this one's at test and
            prediction time.
        optimizer: factory of the optimizer; weight decay is applied to matrices and kernels, not to biases and norms.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
        layer_decay: ratio of the learning rates of neighboring layers, counted from the last one, which has the
            optimizer's; see `zoo.optim.parameter_groups`. 1 for one learning rate, about 0.75 to fine-tune.
    """

    exports = ("classifier",)
    window: WindowedMetrics
    class_weight: Tensor | None
    temperature: Tensor
    _built_groups = 0
    _low_until = 0.0  # optimizer step from which images have their own size
    _calibrated = False

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        network: ClassifierNetworkFactory,
        init_from: str | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        mixup: float = 0.0,
        low_resolution: float = 0.0,
        low_resolution_fraction: float = 0.5,
        ema_half_life: float = 0.0,
        flip_tta: bool = False,
        calibrate: bool = False,
        channels_last: bool = False,
        compile: Compile = False,
        mc_samples: int = 0,
        mc_seed: int = 0,
        ensemble: list[str] | None = None,
        optimizer: OptimizerCallable = classifier_optimizer,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler", "ensemble", "init_from"])
        check_fraction(
            label_smoothing=label_smoothing,
            low_resolution=low_resolution,
            low_resolution_fraction=low_resolution_fraction,
        )
        check_at_least(0, mixup=mixup, ema_half_life=ema_half_life, mc_samples=mc_samples)
        if not 0 < layer_decay <= 1:
            raise UserError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1")
        if num_classes < 2:
            raise UserError(f"a classifier needs at least 2 classes, and the data has {num_classes}")
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.channels_last = channels_last and len(self.input_shape) == 3
        self.network = self._build_network(network)
        if init_from is not None:
            load_initial_weights(self.network, init_from, num_classes)
        if mc_samples and not any(isinstance(m, DROPOUT_LAYERS) and m.p > 0 for m in self.network.modules()):
            raise UserError(f"mc_samples is {mc_samples}, but the network has no dropout: all passes would be the same")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.register_buffer("class_weight", self._given_weights(), persistent=False)
        self.mixup = mixup
        self.low_sides = self._check_low_resolution(low_resolution)
        self.low_resolution_fraction = low_resolution_fraction
        self.flip_tta = flip_tta
        self.register_buffer("temperature", torch.ones(()))
        self.calibration = TemperatureScaling() if calibrate else None
        self.compile_network = check_compile(compile)
        self.mc_samples = mc_samples
        self.mc_seed = mc_seed
        self.ensemble = list(ensemble or [])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.layer_decay = layer_decay
        self.ema = EMA(self.network, ema_half_life) if ema_half_life > 0 else None
        self._members: list[Classifier] = []  # a plain list, so that they are not submodules
        # Without checks of their inputs, which read from the device in every update.
        accuracy = partial(MulticlassAccuracy, num_classes, average="micro", validate_args=False)
        calibration_error = partial(MulticlassCalibrationError, num_classes, n_bins=15, norm="l1", validate_args=False)
        self.val_loss, self.val_acc = Mean(), accuracy()
        self.test_metrics = nn.ModuleDict(
            {
                "acc": accuracy(),
                "nll": Mean(),
                "nll_uncalibrated": Mean(),
                "brier": Mean(),
                "ece": calibration_error(),
                "ece_uncalibrated": calibration_error(),
            }
        )
        self.window = WindowedMetrics("images")

    def _build_network(self, given: Any) -> nn.Module:
        network, description = build_network("network", given, (self.input_shape, self.num_classes))
        # A subclass that builds its own network has options of it instead of this argument.
        if "network" in inspect.signature(type(self).__init__).parameters:
            self.hparams["network"] = description
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        check_output("network", network, (torch.zeros(2, *self.input_shape),), (2, self.num_classes))
        return network

    def _check_low_resolution(self, ratio: float) -> tuple[int, int] | None:
        """Height and width of the smaller images, after a forward pass with two of them; None for no such images."""
        if not ratio:
            return None
        if len(self.input_shape) != 3:
            raise UserError(f"low_resolution is for images, not for samples of the shape {self.input_shape}")
        height, width = (max(1, round(side * ratio)) for side in self.input_shape[1:])
        x = torch.zeros(2, self.input_shape[0], height, width)
        check_output("low_resolution: the network", self.network, [x], (2, self.num_classes))
        return height, width

    def _given_weights(self) -> Tensor | None:
        """Weights of the classes that are known before training: all but "balanced"."""
        if self.class_weights is None or self.class_weights == "balanced":
            return None
        weights = torch.tensor(self.class_weights, dtype=torch.float32)
        if weights.shape != (self.num_classes,):
            raise UserError(f"class_weights has {len(weights)} numbers, and there are {self.num_classes} classes")
        if not (weights.isfinite() & (weights > 0)).all():
            raise UserError(f"class_weights is {self.class_weights}; all of them must be positive")
        return weights

    @property
    def backbone(self) -> nn.Module:
        """The network without its last layer, as Lightning's `BackboneFinetuning` asks for it.

        Raises:
            UserError: the network has no such part.
        """
        return find_backbone(self.network)

    # Predictions

    def forward(self, x: Tensor) -> Tensor:
        """x (N, *input_shape) to logits (N, num_classes), by the averaged network if there is one; calibrated."""
        return self._uncalibrated(x) / self.temperature

    def _uncalibrated(self, x: Tensor) -> Tensor:
        return self._run(self.ema or self.network, x)

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        x = cast_to(network, x)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return widen(network(x))

    def run_averaged(self, batch: tuple[Tensor, Tensor]) -> None:
        self._uncalibrated(batch[0])

    def _logits(self, x: Tensor) -> Tensor:
        """Logits (N, C) of one member, averaged with those of the mirror images for `flip_tta`."""
        return self._with_mirrored(self._uncalibrated(x), x) / self.temperature

    def _with_mirrored(self, logits: Tensor, x: Tensor) -> Tensor:
        """Uncalibrated logits of x, averaged with those of the mirror images for `flip_tta`."""
        if self.flip_tta and self._mirrors():
            logits = logits.clone()  # a network in a CUDA graph writes its next output over this one
            return (logits + self._uncalibrated(x.flip(-1))) / 2
        return logits

    def _mirrors(self) -> bool:
        """Whether images are mirrored: the classes are mirror-symmetric, or the training data did not say."""
        return len(self.input_shape) == 3 and self.trained_on.mirror_symmetric is not False

    def _member_log_probs(self, x: Tensor, places: Tensor, calibrated: bool) -> Iterator[Tensor]:
        """Log-probabilities (N, C) of the ensemble's members, one at a time to save memory."""
        for index, model in enumerate([self, *self._members_on(x.device)]):
            scale = 1 if calibrated else model.temperature
            if not self.mc_samples:
                yield (model._logits(x) * scale).log_softmax(1)
            for number in range(self.mc_samples):
                with dropout_on(model, stream_keys(places, self.mc_seed, index, number)):
                    yield (model._logits(x) * scale).log_softmax(1)

    def predictive(self, x: Tensor, places: Tensor | None = None, calibrated: bool = True) -> Predictions:
        """The predictive distribution: by weight scaling, Monte Carlo dropout, or an ensemble.

        The module's mode and the global random state are left unchanged.

        Args:
            x: samples, (N, *input_shape).
            places: places of the samples in their split, int64 (N,), from which, with `mc_seed`, dropout masks are
                drawn: a sample gets the same ones in every batch (default: 0 to N - 1).
            calibrated: divide the logits of each member by its temperature.
        """
        places = torch.arange(len(x)) if places is None else places
        with eval_mode(self):
            total, entropies, count = torch.full((), -torch.inf, device=x.device), torch.zeros((), device=x.device), 0
            for log_p in self._member_log_probs(x, places.to(x.device), calibrated):
                total = torch.logaddexp(total, log_p)
                entropies = entropies + entropy(log_p)
                count += 1
        mean = total - math.log(count)
        information = (entropy(mean) - entropies / count).clamp_min(0)
        return Predictions(mean, entropy(mean), information, self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; their numbers if the training data had no names, or names of other classes."""
        names = self.trained_on.class_names or ()
        return names if len(names) == self.num_classes else tuple(map(str, range(self.num_classes)))

    def predict(self, samples: Any, batch_size: int = 256) -> Predictions:
        """Classifies pictures, brought to the model's input as in training, or other samples.

        Args:
            samples: one picture or a sequence: paths, PIL images, uint8 arrays (H, W) or (H, W, C), uint8 tensors (C,
                H, W), of any size; or floats of the model's input shape, images in [-1, 1]. Arrays and tensors can have
                a batch dimension.
            batch_size: number of samples that are computed at a time.

        Raises:
            UserError: a file is missing or broken, a sample has another type or shape, or the checkpoint does not say
                how pictures are brought to the model's input.
        """
        batches = input_batches(samples, self.input_shape, self.trained_on.preprocessing, batch_size)
        parts, done = [], 0
        for x in batches:
            parts.append(self.predictive(x.to(self.device), done + torch.arange(len(x))))
            done += len(x)
        return Predictions.concatenate(parts, self.classes)

    def export_classifier(self, *, preprocess: bool = False, probabilities: bool = False) -> Export:
        """The network that predicts, with the mirror images of `flip_tta` if the model has it.

        Args:
            preprocess: take pictures of the model's size as uint8 (N, C, H, W), which are normalized inside; how they
                are brought to this size is in the metadata.
            probabilities: return probabilities instead of logits.

        Raises:
            UserError: it is not known how pictures are normalized, or the model is an ensemble.
        """
        if self.ensemble:
            raise UserError("an ensemble is not exported as a whole: leave out ensemble, and export each member")
        preprocessing = self.trained_on.preprocessing if preprocess else None
        if preprocess and (preprocessing is None or preprocessing.input_shape != self.input_shape):
            raise UserError("the checkpoint does not say how pictures are normalized: leave out preprocess")

        def classify(x: Tensor) -> Tensor:
            logits = self._logits(x if preprocessing is None else preprocessing.normalize(x))
            return logits.softmax(1) if probabilities else logits

        pixels = Input("pictures of the model's size", self.input_shape, torch.uint8, (0, 255))
        samples = Input("images in [-1, 1]", self.input_shape, bounds=(-1, 1))
        return Export(
            Part(self.network if self.ema is None else self.ema.network, classify),
            {"images": pixels if preprocess else samples}
            if len(self.input_shape) == 3
            else {"samples": Input("samples", self.input_shape)},
            "probabilities" if probabilities else "logits",
            (self.num_classes,),
            settings={"flip_tta": self.flip_tta and self._mirrors()},
            note="one pass with dropout off, without Monte Carlo dropout" if self.mc_samples else "",
        )

    def _members_on(self, device: torch.device) -> list[Classifier]:
        """The other members of the ensemble, loaded on first use."""
        if len(self._members) != len(self.ensemble):
            self._members = [self._load_member(path) for path in self.ensemble]
        for member in self._members:
            member.to(device).trainer = attached_trainer(self)
        return self._members

    # Training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            check_finetuning(self.trainer)
            if self.calibration is not None:
                check_validation(self.trainer)
            if self.class_weights == "balanced":
                self.class_weight = balanced_weights(self.trainer, self.num_classes).to(self.device)
        if stage in ("test", "predict"):
            self._members_on(self.device)  # so that a bad checkpoint is reported before anything is computed

    def _load_member(self, path: str) -> Classifier:
        if not Path(path).is_file():
            raise UserError(f"{path} in ensemble is not a file")
        member = load_model(path)
        if not isinstance(member, Classifier) or member.input_shape != self.input_shape:
            raise UserError(f"{path} in ensemble does not hold a classifier of samples of the shape {self.input_shape}")
        if member.num_classes != self.num_classes:
            raise UserError(f"{path} in ensemble has {member.num_classes} classes, not {self.num_classes}")
        names = (self.trained_on.class_names, member.trained_on.class_names)
        if None not in names and names[0] != names[1]:
            raise UserError(f"{path} in ensemble has classes of other names, or in another order, than this classifier")
        return member

    def configure_optimizers(self) -> Any:
        built = super().configure_optimizers()
        optimizer = built["optimizer"] if isinstance(built, dict) else built
        self._built_groups = len(optimizer.param_groups)
        return built

    def on_fit_start(self) -> None:
        follow_unfreezing(self, self.network, self.layer_decay, self._built_groups)
        super().on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.low_sides is not None:
            steps = self.trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                raise UserError("low_resolution needs a run of a known length: give trainer.max_steps or max_epochs")
            self._low_until = self.low_resolution_fraction * steps

    def on_train_epoch_start(self) -> None:
        follow_unfreezing(self, self.network, self.layer_decay, self._built_groups)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = widen(batch[0]), batch[1]
        if self.low_sides is not None and self.trainer.global_step < self._low_until:
            x = resize(x, self.low_sides)
        target: Tensor = y
        if self.mixup:
            x, target = mixup(x, y, self.num_classes, self.mixup)
        logits = self._run(self.network, x)
        loss = F.cross_entropy(logits, target, weight=self.class_weight, label_smoothing=self.label_smoothing)
        self.count_images(len(x))
        hits = {} if self.mixup else {"acc": (logits.detach().argmax(1) == y).float().mean()}
        self.window.update(len(x), loss=loss, **hits)
        self.window.log(self)
        return loss

    # Validation and test

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self._uncalibrated(x)
        self.val_loss.update(F.cross_entropy(logits, y, reduction="none"))
        self.val_acc.update(logits, y)
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/acc", self.val_acc, prog_bar=True)
        if self.calibration is not None and self._in_training():
            self.calibration.update(self._with_mirrored(logits, x), y)

    def _in_training(self) -> bool:
        return self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking

    def on_validation_epoch_end(self) -> None:
        # Before `on_validation_end`, in which checkpoints are written.
        if self.calibration is not None and self._in_training():
            fit = self._fit_temperature(self.calibration)
            values = {
                "temperature": fit.temperature,
                "nll_uncalibrated": fit.nll_before,
                "nll_calibrated": fit.nll_after,
            }
            self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)

    def _fit_temperature(self, calibration: TemperatureScaling) -> TemperatureFit:
        fit = calibration.compute()
        calibration.reset()
        if math.isfinite(fit.temperature):
            self.temperature.fill_(fit.temperature)
        return fit

    def on_test_start(self) -> None:
        if self.calibration is not None and self.temperature == 1:
            with self.trainer.precision_plugin.forward_context():
                for x, y in validation_batches(self):
                    self.calibration.update(self._with_mirrored(self._uncalibrated(x), x), y)
            fit = self._fit_temperature(self.calibration)
            rank_zero_info(describe(fit))
        self._calibrated = any(bool(model.temperature != 1) for model in (self, *self._members))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """Measures accuracy, negative log-likelihood, Brier score and calibration error of the mean probabilities.

        The expected calibration error (ECE) is that of Guo et al. 2017 (arXiv 1706.04599, eq. 3), with 15 equal bins.
        With a temperature, NLL and ECE are measured without it, too (`test/nll_uncalibrated`, `test/ece_uncalibrated`).
        """
        x, y = batch
        self._find_indices(len(x), batch_idx)
        predictive = self.predictive(x, self._indices)
        p = predictive.probabilities
        values = {"acc": (p, y), "brier": (brier_score(p, y),), **_calibration_values(predictive, y)}
        if self._calibrated:
            without = self.predictive(x, self._indices, calibrated=False)
            values |= {f"{name}_uncalibrated": value for name, value in _calibration_values(without, y).items()}
        for name, arguments in values.items():
            metric = cast(Any, self.test_metrics[name])
            metric.update(*arguments)
            self.log(f"test/{name}", metric)
        return predictive

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Predictions:
        self._find_indices(len(batch[0]), batch_idx)
        return self.predictive(batch[0], self._indices)


def _calibration_values(predictive: Predictions, y: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What the metrics of calibration are updated with, by name."""
    return {
        "nll": (F.nll_loss(predictive.log_probabilities, y, reduction="none"),),
        # Below 1, because torchmetrics puts probabilities of exactly 1 into a sixteenth bin.
        "ece": (predictive.probabilities.clamp_max(1 - 2**-24), y),
    }
