"""Base of the diffusion and the consistency model: a network with EDM's preconditioning, and its training.

Preconditioning and noise levels are those of EDM (Karras et al. 2022, arXiv 2206.00364): input, output and target of
the network have unit variance at every noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.errors import UserError, check_at_least, check_choice
from zoo.metrics import WindowedMetrics
from zoo.models.base import attached_trainer
from zoo.models.diffusion.denoiser import append_dims
from zoo.models.diffusion.network import ResidualMLP, UNet
from zoo.models.diffusion.solvers import karras_sigmas, state_dtype
from zoo.models.ema import EMA
from zoo.models.generative import GenerativeModule
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, diffusion_optimizer
from zoo.seeding import SampleNoise, sample_seeds, seeds_at, spawn_generator

GOLDEN_RATIO = (5**0.5 - 1) / 2
CALIBRATION = 10_000  # training samples on which mean and standard deviation are measured, at most


class DenoisingModule(GenerativeModule):
    """Model that maps noisy samples to clean ones, with preconditioning and log-normal noise levels.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        conditional: condition the network on the class.
        architecture: "mlp" for points, "unet" for images, "auto" to choose by the shape.
        widths: channels of the U-Net's levels, finest first; each further level halves the resolution. One level makes
            a residual convolutional network. For the MLP a single number, its width.
        blocks: residual blocks per level, on the way down and up, or residual blocks of the MLP.
        patch_size: side of the squares of pixels that become channels of the U-Net (pixel-unshuffle).
        attention: add self-attention at the U-Net's coarsest level.
        class_dropout: probability that a label is dropped in training, for classifier-free guidance.
        noise_mean: mean of ln(sigma) in training.
        noise_std: standard deviation of ln(sigma) in training.
        sigma_min: lowest noise level of sampling, from which a sample is denoised in one step.
        sigma_max: highest noise level of sampling.
        steps: number of sampling steps.
        sigma_data: standard deviation of the data about its mean; by default measured when training starts.
        ema_half_life: half-life of the weights' moving average, in images; 0 for no average.
        channels_last: use the channels-last memory format, which is faster on most devices.
        compile: compile the network with torch.compile; the first steps take minutes.
        extractor: feature extractor of the Fréchet distance; see `zoo.metrics.distance_for`.
        optimizer: factory of the optimizer; weight decay is applied to matrices and kernels, not to biases and norms.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
    """

    mean: Tensor
    sigma_data: Tensor
    calibrated: Tensor
    window: WindowedMetrics
    #: Means that are logged in validation.
    validated: Sequence[str] = ("loss",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        conditional: bool = False,
        architecture: Literal["auto", "mlp", "unet"] = "auto",
        widths: Sequence[int] | None = None,
        blocks: int = 3,
        patch_size: int = 1,
        attention: bool = False,
        class_dropout: float = 0.1,
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
        optimizer: OptimizerCallable = diffusion_optimizer,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        check_choice("architecture", architecture, ("auto", "mlp", "unet"))
        check_at_least(1, blocks=blocks, patch_size=patch_size, steps=steps)
        check_at_least(0, ema_half_life=ema_half_life)
        for name, deviation in {"noise_std": noise_std, "sigma_data": sigma_data}.items():
            if deviation is not None and not deviation > 0:
                raise UserError(f"{name} is {deviation}; it must be above 0")
        if not 0 <= class_dropout <= 1:
            raise UserError(f"class_dropout is {class_dropout}; it must be between 0 and 1")
        karras_sigmas(steps, sigma_min, sigma_max)  # raises an error for invalid values
        self.class_dropout = class_dropout
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
        self.network = self._build_network(architecture, widths, blocks, patch_size, attention)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.ema = EMA(self.network, ema_half_life) if ema_half_life > 0 else None
        self.val_metrics = nn.ModuleDict({name: MeanMetric() for name in self.validated})
        self.window = WindowedMetrics("images")
        self._must_calibrate = False

    def _build_network(
        self, architecture: str, widths: Sequence[int] | None, blocks: int, patch_size: int, attention: bool
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
        scale = patch_size * 2 ** (len(widths) - 1)
        if any(side % scale for side in sides):
            raise UserError(
                f"patch_size {patch_size} and {len(widths)} widths divide the sides by {scale}, which images of "
                f"{sides[0]}x{sides[1]} pixels do not allow; use another patch_size, or fewer widths"
            )
        if min(widths) < 1 or any(width > 16 and width % 16 for width in widths):
            raise UserError(f"widths are {list(widths)}; use multiples of 16, or less than 16")
        return UNet(channels, widths, blocks, patch_size, attention, classes)

    # Between noise and data

    def calibrate(self, x: Tensor) -> None:
        """Measures the mean of each coordinate, and the standard deviation about it, of samples (N, *input_shape).

        Called once, when training starts, since the network's weights depend on both.
        """
        self.mean.copy_(x.mean(0))
        if self.hparams["sigma_data"] is None:
            self.sigma_data.copy_((x - self.mean).square().mean().sqrt().clamp_min(1e-3))
        self.calibrated.fill_(True)

    def _precondition(
        self, network: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The network's output for noisy samples, and the factors c_skip and c_out of the denoiser (EDM, table 1)."""
        total = (sigma.square() + self.sigma_data.square()).sqrt()
        c_skip, c_out = (self.sigma_data / total).square(), sigma * self.sigma_data / total
        inputs = (x - self.mean) / append_dims(total, x)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        outputs = network(inputs, sigma.log() / 4, labels).float()
        return outputs, append_dims(c_skip, x), append_dims(c_out, x)

    def _first_noise(
        self, n: int, labels: Tensor | None, generator: torch.Generator | None, seeds: Tensor | None
    ) -> tuple[SampleNoise, Tensor | None]:
        """Noise of `n` samples, with a seed for each, and their labels, drawn if they are not given."""
        if generator is None and (seeds is None or (labels is None and self.conditional)):
            generator = spawn_generator()
        seeds = sample_seeds(n, generator) if seeds is None else seeds
        labels = self.draw_labels(n, generator) if labels is None else labels.to(self.device)
        return SampleNoise(seeds, self.input_shape, self.device, state_dtype(self.device)), labels

    def _finish(self, x: Tensor) -> Tensor:
        """Samples as float32; images clamped to [-1, 1]."""
        return x.float().clamp(-1, 1) if len(self.input_shape) == 3 else x.float()

    # Training

    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and not self.calibrated and hasattr(data, "reference"):
            self.calibrate(data.reference(CALIBRATION))
        super().setup(stage)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._must_calibrate = not self.calibrated

    def stratified_sigmas(self, n: int) -> Tensor:
        """Log-normal noise levels (n,) of a training batch, one from each of n intervals of equal probability.

        The intervals are those of the global batch, over all devices.
        """
        trainer = attached_trainer(self)
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        index = torch.arange(n, device=self.device) * ranks + rank
        quantile = (index + torch.rand(n, device=self.device)) / (n * ranks)
        normal = torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)).float()
        return (self.noise_mean + self.noise_std * normal).exp()

    def begin_batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Samples of a training batch and, for a conditional model, their labels, some of them dropped."""
        x, y = batch
        if self._must_calibrate:
            rank_zero_warn("mean and sigma_data are measured on one batch: the data module has no reference(n)")
            self.calibrate(cast(Tensor, self.all_gather(x)).reshape(-1, *self.input_shape))
            self._must_calibrate = False
        if not self.conditional:
            return x, None
        dropped = torch.rand(len(y), device=y.device) < self.class_dropout
        return x, y.masked_fill(dropped, self.num_classes)

    def end_batch(self, loss: Tensor, images: int) -> Tensor:
        """Counts the images of a training batch and logs the windowed loss."""
        self.count_images(images)
        self.window.update(images, loss=loss)
        self.window.log(self)
        return loss

    def fixed_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise like x and noise levels (N,) for a validation batch, seeded by the samples' indices in the split.

        The quantiles of the noise levels are the fractional parts of multiples of the golden ratio, which fill the unit
        interval evenly for any number of samples.
        """
        noise = SampleNoise(seeds_at(self._indices, seed=1), self.input_shape)
        quantile = ((self._indices + 0.5).double() * GOLDEN_RATIO) % 1
        sigma = (self.noise_mean + self.noise_std * torch.special.ndtri(quantile)).exp()
        return noise().to(x), sigma.to(x)

    def _log_mean(self, name: str, values: Tensor) -> None:
        metric = cast(MeanMetric, self.val_metrics[name])
        metric.update(values)
        self.log(f"val/{name}", metric)
