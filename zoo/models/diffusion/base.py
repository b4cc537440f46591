"""Base of the diffusion and the consistency model: a denoiser with log-normal noise levels, and its training.

Noise levels are those of EDM (Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from zoo.contracts import ReferenceSamples, attached_trainer, data_of, offers
from zoo.errors import UserError, check_at_least
from zoo.metrics import Mean, WindowedMetrics
from zoo.models.base import Compile, check_compile, eval_mode
from zoo.models.diffusion.denoiser import Denoiser, append_dims
from zoo.models.diffusion.dit import DiT
from zoo.models.diffusion.network import ResidualMLP, UNet
from zoo.models.diffusion.solvers import Noise, karras_sigmas, state_dtype
from zoo.models.ema import EMA
from zoo.models.exports import Export, Input, Part, label_inputs
from zoo.models.generative import GenerativeModule
from zoo.models.networks import build_network, check_output
from zoo.models.precision import float64_device
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, diffusion_optimizer
from zoo.seeding import SampleNoise, sample_seeds, seeds_at, spawn_generator, upload

GOLDEN_RATIO = (5**0.5 - 1) / 2
CALIBRATION = 10_000  # training samples on which mean and standard deviation are measured, at most
DenoisingNetworkFactory = Callable[[Sequence[int], int], nn.Module]


def default_network(input_shape: Sequence[int], num_classes: int = 0) -> UNet | ResidualMLP:
    """U-Net for images, residual MLP for points."""
    return (UNet if len(input_shape) == 3 else ResidualMLP)(input_shape, num_classes)


NETWORKS: dict[str, DenoisingNetworkFactory] = {"auto": default_network, "mlp": ResidualMLP, "unet": UNet, "dit": DiT}


class DenoisingModule(GenerativeModule):
    """Model that holds a `Denoiser`, and trains it at log-normal noise levels.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        conditional: condition the network on the class.
        network: "mlp" for points, "unet" or "dit" for images, "auto" to choose by the shape; or a factory that is
            handed `(input_shape, num_classes)`, with 0 classes for an unconditional model, or a module. It maps noisy
            samples (N, *input_shape), their noise levels c_noise (N,) and labels, int64 (N,) or None, to (N,
            *input_shape). The label `num_classes` means no class.
        parametrization: what the network predicts: "edm" for EDM's preconditioning, "flow" for the velocity of flow
            matching; see `zoo.models.diffusion.denoiser`.
        noise_mean: mean of ln(sigma) in training.
        noise_std: standard deviation of ln(sigma) in training.
        sigma_min: lowest noise level of sampling, from which a sample is denoised in one step.
        sigma_max: highest noise level of sampling.
        steps: number of sampling steps.
        sigma_data: standard deviation of the data about its mean; by default measured when training starts.
        ema_half_life: half-life of the weights' moving average, in images; 0 for no average.
        channels_last: use the channels-last memory format, which is faster on most devices. On a GPU, group norm
            converts to NCHW, and the next convolution back, unless the network is compiled.
        compile: compile the network with torch.compile; the first steps take minutes. True, or a mode of it, such as
            "reduce-overhead" for CUDA graphs, which launch the operators of a small network together.
        extractor: feature extractor of the Fréchet distance; see `zoo.metrics.distance_for`.
        optimizer: factory of the optimizer; weight decay is applied to matrices and kernels, not to biases and norms.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
    """

    exports = ("sampler", "denoiser", "network")
    averaged_from = "denoiser"
    calibrated: Tensor
    window: WindowedMetrics
    #: Means that are logged in validation.
    validated: Sequence[str] = ("loss",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        conditional: bool = False,
        network: Literal["auto", "mlp", "unet", "dit"] | DenoisingNetworkFactory = "auto",
        parametrization: Literal["edm", "flow"] = "edm",
        noise_mean: float = -1.2,
        noise_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        steps: int = 10,
        sigma_data: float | None = None,
        ema_half_life: float = 20_000,
        channels_last: bool = True,
        compile: Compile = False,
        extractor: str = "auto",
        optimizer: OptimizerCallable = diffusion_optimizer,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler"])
        check_at_least(1, steps=steps)
        check_at_least(0, ema_half_life=ema_half_life)
        for name, deviation in {"noise_std": noise_std, "sigma_data": sigma_data}.items():
            if deviation is not None and not deviation > 0:
                raise UserError(f"{name} is {deviation}; it must be above 0")
        karras_sigmas(steps, sigma_min, sigma_max)  # raises an error for invalid values
        self.noise_mean, self.noise_std = noise_mean, noise_std
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.steps = steps
        self.channels_last = channels_last and len(self.input_shape) == 3
        self.compile_network = check_compile(compile)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.register_buffer("calibrated", torch.tensor(False))
        inner = self._build_network(network)
        self.denoiser = Denoiser(inner, self.input_shape, sigma_data or 0.5, parametrization, self.channels_last)
        self.ema = EMA(self.denoiser, ema_half_life) if ema_half_life > 0 else None
        self.val_metrics = nn.ModuleDict({name: Mean() for name in self.validated})
        self.window = WindowedMetrics("images")
        self._must_calibrate = False

    def _build_network(self, given: Any) -> nn.Module:
        classes = self.num_classes if self.conditional else 0
        network, self.hparams["network"] = build_network("network", given, (self.input_shape, classes), NETWORKS)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        samples, labels = torch.zeros(2, *self.input_shape), torch.zeros(2, dtype=torch.int64) if classes else None
        check_output("network", network, (samples, torch.zeros(2), labels), samples.shape)
        return network

    @property
    def network(self) -> Denoiser:  # type: ignore[override]
        """The denoiser that is trained."""
        return self.denoiser

    @property
    def averaged(self) -> Denoiser:
        """The denoiser with averaged weights if there is an average, else the one that is trained."""
        return self.denoiser if self.ema is None else cast(Denoiser, self.ema.network)

    def sharded_networks(self) -> list[nn.Module]:
        return [part.network for part in self._denoisers()]

    def _denoisers(self) -> list[Denoiser]:
        return [self.denoiser, *([] if self.ema is None else [self.averaged])]

    # Between noise and data

    def calibrate(self, x: Tensor) -> None:
        """Measures the mean of each coordinate, and the standard deviation about it, of samples (N, *input_shape).

        Called once, when training starts, since the network's weights depend on both.
        """
        for denoiser in self._denoisers():
            denoiser.mean.copy_(x.mean(0))
            if self.hparams["sigma_data"] is None:
                denoiser.sigma_data.copy_((x - denoiser.mean).square().mean().sqrt().clamp_min(1e-3))
        self.calibrated.fill_(True)

    def _first_noise(
        self, n: int, labels: Tensor | None, generator: torch.Generator | None, seeds: Tensor | None
    ) -> tuple[SampleNoise, Tensor | None]:
        """Noise of `n` samples, with a seed for each, and their labels, drawn if they are not given."""
        if seeds is None:
            seeds = sample_seeds(n, spawn_generator() if generator is None else generator)
        labels = self.draw_labels(seeds) if labels is None else labels.to(self.device)
        return SampleNoise(seeds, self.input_shape, self.device, state_dtype(self.device)), labels

    def _finish(self, x: Tensor) -> Tensor:
        """Samples as float32; images clamped to [-1, 1]."""
        return x.float().clamp(-1, 1) if len(self.input_shape) == 3 else x.float()

    # Exporting

    def export_denoiser(self) -> Export:
        """E[x_0 | x] for noisy samples and their noise levels; of a consistency model, its consistency function."""
        inputs = {
            "x": Input("noisy samples", self.input_shape),
            "sigma": Input("noise levels", bounds=(self.sigma_min, self.sigma_max)),
            **self._label_inputs(),
        }
        return Export(Part(self.averaged), inputs, "denoised", self.input_shape)

    def export_network(self) -> Export:
        """The network inside of the denoiser, which sees samples of unit variance."""
        network = self.averaged.network
        inputs = {"x": Input("noisy samples of unit variance", self.input_shape), "c_noise": Input("ln(sigma) / 4")}
        return Export(
            Part(network, lambda x, c_noise, labels=None: network(x, c_noise, labels).float()),
            {**inputs, **self._label_inputs()},
            "output",
            self.input_shape,
        )

    def _label_inputs(self) -> dict[str, Input]:
        return label_inputs(self.num_classes - 1 if self.conditional else None)

    def _export_sampler(self, draw: Callable[[Noise, Tensor | None], Tensor], settings: dict[str, Any]) -> Export:
        """A sampler as a function of its noise.

        Args:
            draw: from a function that draws noise and from labels, (N,) or None, to samples (N, *input_shape).
            settings: plain values that say how it draws.
        """
        count = self._count_draws(draw)

        def sample(noise: Tensor, labels: Tensor | None = None) -> Tensor:
            noise = noise.to(state_dtype(noise.device))
            draws = iter(noise.unbind(1) if count > 1 else [noise])
            return draw(lambda: next(draws), labels)

        about = "standard normal noise" if count == 1 else f"standard normal noise of the {count} draws"
        noise = Input(about, self.input_shape if count == 1 else (count, *self.input_shape))
        inputs = {"noise": noise, **self._label_inputs()}
        return Export(Part(self.averaged, sample), inputs, "samples", self.input_shape, settings=settings)

    def _count_draws(self, draw: Callable[[Noise, Tensor | None], Tensor]) -> int:
        """Number of times that noise is drawn for a sample: more than once by stochastic samplers."""
        drawn = []

        def noise() -> Tensor:
            drawn.append(torch.zeros(1, *self.input_shape, dtype=state_dtype(self.device), device=self.device))
            return drawn[-1]

        with eval_mode(self):
            draw(noise, torch.zeros(1, dtype=torch.int64, device=self.device) if self.conditional else None)
        return len(drawn)

    # Training

    def setup(self, stage: str) -> None:
        data = data_of(self.trainer)
        if stage == "fit" and not self.calibrated and offers(data, ReferenceSamples):
            self.calibrate(data.reference(CALIBRATION))
        super().setup(stage)

    def uses_of_data(self, stage: str) -> dict[type, str]:
        uses = super().uses_of_data(stage)
        if stage == "fit" and not self.calibrated:
            calibration = "mean and deviation of the data from more than the first batch"
            uses[ReferenceSamples] = " and ".join([*uses.values(), calibration])
        return uses

    def on_train_start(self) -> None:
        super().on_train_start()
        self._must_calibrate = not self.calibrated

    def stratified_sigmas(self, n: int) -> Tensor:
        """Log-normal noise levels (n,) of a training batch, one from each of n intervals of equal probability.

        The intervals are those of the global batch, over all devices.
        """
        trainer = attached_trainer(self)
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        device = float64_device(self.device)
        index = torch.arange(n, device=device) * ranks + rank
        quantile = (index + torch.rand(n, device=device, dtype=torch.float32)) / (n * ranks)
        normal = torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)).float().to(self.device)
        return (self.noise_mean + self.noise_std * normal).exp()

    def begin_batch(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Samples of a training batch and, for a conditional model, their labels."""
        x, labels = self.unpack(batch)
        if self._must_calibrate:
            self.calibrate(cast(Tensor, self.all_gather(x)).reshape(-1, *self.input_shape))
            self._must_calibrate = False
        return x, labels

    def run_averaged(self, batch: Any) -> None:
        x, labels = self.unpack(batch)
        sigma = (self.noise_mean + self.noise_std * torch.randn(len(x), device=x.device, dtype=torch.float32)).exp()
        self.averaged(x + append_dims(sigma, x) * torch.randn_like(x), sigma, labels)

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
        noise = SampleNoise(seeds_at(self._indices, seed=1), self.input_shape, x.device)
        quantile = ((self._indices.double() + 0.5) * GOLDEN_RATIO) % 1
        sigma = (self.noise_mean + self.noise_std * torch.special.ndtri(quantile)).exp()
        with self.noise_memory.use():
            return noise().to(x.dtype), upload(sigma.to(x.dtype), x.device)

    def _log_mean(self, name: str, values: Tensor) -> None:
        metric = cast(Mean, self.val_metrics[name])
        metric.update(values)
        self.log(f"val/{name}", metric)
