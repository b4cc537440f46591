"""What the models have in common that look at noisy samples: a network with EDM's preconditioning, and its training.

Preconditioning and noise levels are those of EDM (Karras et al. 2022, arXiv 2206.00364): with them input, output and
target of the network have unit variance at every noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.base import TrainingWindow
from zoo.diffusion.force import column
from zoo.diffusion.network import ResidualMLP, UNet
from zoo.diffusion.samplers import SampleNoise, noise_levels
from zoo.ema import EMA
from zoo.errors import UserError, check_at_least, check_choice
from zoo.generative import GenerativeModule, sample_seeds, seeds_at
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_optimizer

GOLDEN_RATIO = (5**0.5 - 1) / 2
CALIBRATION = 10_000  # training samples that mean and standard deviation are measured on, at most


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with fused steps, the default."""
    return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, fused=True)


def fresh_generator() -> torch.Generator:
    """A generator of its own, seeded by the global one: different every time, and repeated by the run's seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


class Preconditioned(GenerativeModule):
    """A network between noisy samples and clean ones; base of the diffusion model and of its student.

    Args:
        input_shape: of one sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of labels in the data.
        conditional: learn for each label, and for none, so that samples can be drawn by label.
        architecture: "mlp" for points, "unet" for images, "auto" for the one that suits the shape.
        widths: channels of the U-Net's levels, the finest first, each of half the size; one level is a residual
            convolutional network. For the MLP one number, its width.
        blocks: residual blocks in each level on either way, or of the MLP.
        patch: squares of patch x patch pixels become channels of the U-Net.
        attention: let the U-Net's coarsest level end in self-attention.
        label_dropout: share of the labels that are hidden in training, for guidance.
        noise_mean: mean of ln(sigma) in training.
        noise_std: standard deviation of ln(sigma) in training.
        sigma_min: noise level at which drawing ends; what is left is denoised at once.
        sigma_max: noise level at which drawing begins.
        steps: of drawing.
        sigma_data: standard deviation of the data about its mean; measured when training begins where it is not given.
        ema_half_life: of the weights' moving average, in images; 0 for none.
        channels_last: memory format of images and convolutions, faster on most devices.
        compile: the network by torch.compile; the first steps take minutes.
        extractor: of the features that `val/fd` is measured in; see `zoo.generative.distance_for`.
        optimizer: makes the optimizer; its weight decay reaches matrices and kernels, not biases and norms.
        lr_scheduler: makes the learning-rate schedule, stepped with every optimizer step; None for a constant.
    """

    mean: Tensor
    sigma_data: Tensor
    calibrated: Tensor
    _window: TrainingWindow
    #: Means that validation logs.
    validated: Sequence[str] = ("loss",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        conditional: bool = False,
        architecture: Literal["auto", "mlp", "unet"] = "auto",
        widths: Sequence[int] | None = None,
        blocks: int = 3,
        patch: int = 1,
        attention: bool = False,
        label_dropout: float = 0.1,
        noise_mean: float = -1.2,
        noise_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        steps: int = 10,
        sigma_data: float | None = None,
        ema_half_life: float = 20_000,
        channels_last: bool = True,
        compile: bool = False,
        extractor: str = "auto",
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        check_choice("architecture", architecture, ("auto", "mlp", "unet"))
        check_at_least(1, blocks=blocks, patch=patch, steps=steps)
        check_at_least(0, ema_half_life=ema_half_life)
        for name, deviation in {"noise_std": noise_std, "sigma_data": sigma_data}.items():
            if deviation is not None and not deviation > 0:
                raise UserError(f"{name} is {deviation}; it must be above 0")
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout is {label_dropout}; it must be between 0 and 1")
        noise_levels(steps, sigma_min, sigma_max)  # checks them
        self.label_dropout = label_dropout
        self.noise_mean, self.noise_std = noise_mean, noise_std
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.steps = steps
        self.channels_last = channels_last and len(self.input_shape) == 3
        self.compile_network = compile
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.register_buffer("mean", torch.zeros(self.input_shape))
        self.register_buffer("sigma_data", torch.tensor(sigma_data or 0.5))
        self.register_buffer("calibrated", torch.tensor(False))
        self.network = self._build_network(architecture, widths, blocks, patch, attention)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.ema = EMA(self.network, ema_half_life) if ema_half_life > 0 else None
        self.val_metrics = nn.ModuleDict({name: MeanMetric() for name in self.validated})
        self._images = 0  # since the last optimizer step
        self._window = TrainingWindow("images")
        self._must_calibrate = False

    def _build_network(
        self, architecture: str, widths: Sequence[int] | None, blocks: int, patch: int, attention: bool
    ) -> nn.Module:
        image = len(self.input_shape) == 3
        classes = self.num_classes if self.conditional else 0
        if architecture == "mlp" or (architecture == "auto" and not image):
            widths = widths or (128,)
            if len(widths) != 1:
                raise UserError(f"widths is {list(widths)}; the MLP has one width")
            return ResidualMLP(self.input_shape, widths[0], blocks, classes)
        if not image:
            raise UserError(f"architecture unet needs images, not the shape {self.input_shape}; use architecture mlp")
        widths = widths or (64,)
        channels, *sides = self.input_shape
        scale = patch * 2 ** (len(widths) - 1)
        if any(side % scale for side in sides):
            raise UserError(
                f"patch {patch} and {len(widths)} widths divide the sides by {scale}, which the images of "
                f"{sides[0]}x{sides[1]} pixels do not allow; use another patch, or fewer widths"
            )
        if min(widths) < 1 or any(width > 16 and width % 16 for width in widths):
            raise UserError(f"widths are {list(widths)}; use multiples of 16, or less than 16")
        return UNet(channels, widths, blocks, patch, attention, classes)

    # Between noise and data

    def calibrate(self, x: Tensor) -> None:
        """Measures the mean of each coordinate, and the standard deviation about it, of samples (N, *input_shape).

        Done once, when training begins: the network's weights are worth nothing with others.
        """
        self.mean.copy_(x.mean(0))
        if self.hparams["sigma_data"] is None:
            self.sigma_data.copy_((x - self.mean).square().mean().sqrt().clamp_min(1e-3))
        self.calibrated.fill_(True)

    def _precondition(
        self, network: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The network's output for noisy samples, and c_skip and c_out, which make a denoiser of it (EDM, table 1)."""
        total = (sigma.square() + self.sigma_data.square()).sqrt()
        c_skip, c_out = (self.sigma_data / total).square(), sigma * self.sigma_data / total
        inputs = (x - self.mean) / column(total, x)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        outputs = network(inputs, sigma.log() / 4, labels).float()
        return outputs, column(c_skip, x), column(c_out, x)

    def _first_noise(
        self, n: int, labels: Tensor | None, generator: torch.Generator | None, seeds: Tensor | None
    ) -> tuple[SampleNoise, Tensor | None]:
        """The noise of `n` samples, each from a seed of its own, and their labels, drawn where they are not given."""
        if generator is None and (seeds is None or (labels is None and self.conditional)):
            generator = fresh_generator()
        seeds = sample_seeds(n, generator) if seeds is None else seeds
        labels = self.draw_labels(n, generator) if labels is None else labels.to(self.device)
        return SampleNoise(seeds, self.input_shape, self.device), labels

    def _finish(self, x: Tensor) -> Tensor:
        """Samples as float32, images within the range that they are shown in."""
        return x.float().clamp(-1, 1) if len(self.input_shape) == 3 else x.float()

    # Training

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.optimizer, self.lr_scheduler, self.network, self.trainer)

    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and not self.calibrated and hasattr(data, "reference"):
            self.calibrate(data.reference(CALIBRATION))
        if stage == "fit" and self.compile_network:
            self.network.compile()

    def on_train_start(self) -> None:
        super().on_train_start()
        self._images = 0
        self._must_calibrate = not self.calibrated

    def stratified_noise_levels(self, n: int) -> Tensor:
        """Noise levels (n,) of a training batch, log-normal, one from each of as many equally likely intervals.

        Over several devices the intervals are those of all their batches together.
        """
        ranks, rank = (self.trainer.world_size, self.global_rank) if self._trainer else (1, 0)
        place = torch.arange(n, device=self.device) * ranks + rank
        quantile = (place + torch.rand(n, device=self.device)) / (n * ranks)
        normal = torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)).float()
        return (self.noise_mean + self.noise_std * normal).exp()

    def begin_batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Samples of a training batch, and their labels, of which some are hidden, for a conditional model."""
        x, y = batch
        if self._must_calibrate:
            rank_zero_warn("mean and sigma_data are measured on one batch, as the data module has no reference(n)")
            self.calibrate(cast(Tensor, self.all_gather(x)).reshape(-1, *self.input_shape))
            self._must_calibrate = False
        if not self.conditional:
            return x, None
        hidden = torch.rand(len(y), device=y.device) < self.label_dropout
        return x, y.masked_fill(hidden, self.num_classes)

    def end_batch(self, loss: Tensor, images: int) -> Tensor:
        """Counts the images of a training batch, and logs its loss with those of its window."""
        self._images += images
        self._window.add(self, images, loss=loss)
        return loss

    def fixed_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise like x and noise levels (N,) for a validation batch, by the places of its samples in the split.

        Multiples of the golden ratio, without their whole part, fill the unit interval evenly however many there are,
        and so they do the quantiles.
        """
        noise = SampleNoise(seeds_at(self._places, seed=1), self.input_shape)
        quantile = ((self._places + 0.5).double() * GOLDEN_RATIO) % 1
        sigma = (self.noise_mean + self.noise_std * torch.special.ndtri(quantile)).exp()
        return noise().to(x), sigma.to(x)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.network, self._images * self.trainer.world_size)
        self._images = 0

    def _log_mean(self, name: str, values: Tensor) -> None:
        metric = cast(MeanMetric, self.val_metrics[name])
        metric.update(values)
        self.log(f"val/{name}", metric)
