"""The diffusion model as a LightningModule: a network that learns the force which runs diffusion backwards.

Preconditioning, noise levels and weights of the loss are those of EDM (Karras et al. 2022, arXiv 2206.00364): with
them input, output and target of the network have unit variance at every noise level. In the lecture's words the network
learns f' = 2 k_B T grad ln p. The loss is the squared error of the force, but for the factor (sigma^2 + sd^2) sigma^2 /
(2 k_B T sd)^2, without which it would grow beyond bounds as the noise goes to 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.base import evaluating
from zoo.diffusion.force import AnalyticForce, Force, column
from zoo.diffusion.likelihood import Likelihood, bits_per_dimension, dequantize, log_likelihood
from zoo.diffusion.network import ResidualMLP, UNet
from zoo.diffusion.process import Process
from zoo.diffusion.samplers import DETERMINISTIC, SOLVERS, Denoise, SampleNoise, Solution, noise_levels, solve
from zoo.ema import EMA
from zoo.errors import UserError, check_at_least, check_choice
from zoo.generative import GenerativeModule, sample_seeds, slerp
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_optimizer

CALIBRATION = 10_000  # training samples that mean and standard deviation are measured on, at most
MEMORIZED = 1 / 3  # ratio of the distances to the nearest training sample, below which a warning is given


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with fused steps, the default."""
    return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, fused=True)


class Diffusion(GenerativeModule, Force):
    """Learns the force that turns noise back into samples, and draws by it.

    It is a `Force` like the analytic one: `denoise`, `score` and `force` take noisy samples and their noise level, and
    stand for the average of the weights where there is one.

    Args:
        input_shape: of one sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of labels in the data.
        conditional: learn the force for each label, and for none, so that samples can be drawn by label.
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
        solver: of the equation of motion; see `zoo.diffusion.samplers`.
        steps: of the solver.
        guidance: w of classifier-free guidance, E_w = E_label + w (E_label - E_none) (Ho and Salimans 2022, arXiv
            2207.12598, eq. 6); 0 for none. It doubles the evaluations of the network.
        diffusivity: D of the process. It sets the clock and nothing else.
        temperature: k_B T of the process. It is the unit of the force and nothing else.
        sigma_data: standard deviation of the data about its mean; measured when training begins where it is not given.
        ema_half_life: of the weights' moving average, in images; 0 for none.
        excess_samples: of a validation batch, that the learned force is compared with the analytic one on, and as many
            drawn ones with the training data; 0 for none.
        likelihood_samples: of the first validation batch, whose likelihood is measured in bits per dimension (of
            points, as negative log-likelihood in nats); 0 for none. It takes hundreds of evaluations of the network.
        likelihood_probes: random vectors by which the divergence is estimated for it, 0 for the exact one; where it is
            not given, that up to 64 dimensions and one vector above.
        channels_last: memory format of images and convolutions, faster on most devices.
        compile: the network by torch.compile; the first steps take minutes.
        extractor: of the features that `val/fd` is measured in; see `zoo.generative.distance_for`.
        optimizer: makes the optimizer; its weight decay reaches matrices and kernels, not biases and norms.
        lr_scheduler: makes the learning-rate schedule, stepped with every optimizer step; None for a constant.
    """

    mean: Tensor
    sigma_data: Tensor
    calibrated: Tensor

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
        solver: str = "deis",
        steps: int = 10,
        guidance: float = 0.0,
        diffusivity: float = 1.0,
        temperature: float = 1.0,
        sigma_data: float | None = None,
        ema_half_life: float = 20_000,
        excess_samples: int = 256,
        likelihood_samples: int = 0,
        likelihood_probes: int | None = None,
        channels_last: bool = True,
        compile: bool = False,
        extractor: str = "auto",
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        check_choice("architecture", architecture, ("auto", "mlp", "unet"))
        check_choice("solver", solver, SOLVERS)
        check_at_least(1, blocks=blocks, patch=patch, steps=steps)
        check_at_least(0, ema_half_life=ema_half_life, excess_samples=excess_samples)
        check_at_least(0, likelihood_samples=likelihood_samples, likelihood_probes=likelihood_probes)
        for name, deviation in {"noise_std": noise_std, "sigma_data": sigma_data}.items():
            if deviation is not None and not deviation > 0:
                raise UserError(f"{name} is {deviation}; it must be above 0")
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout is {label_dropout}; it must be between 0 and 1")
        noise_levels(steps, sigma_min, sigma_max)  # checks them
        self.process = Process(diffusivity, temperature)
        self.temperature = temperature
        self.label_dropout = label_dropout
        self.noise_mean, self.noise_std = noise_mean, noise_std
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.solver, self.steps, self.guidance = solver, steps, guidance
        self.check_guidance(guidance)
        self.excess_samples = excess_samples
        self.likelihood_samples, self.likelihood_probes = likelihood_samples, likelihood_probes
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
        self.val_metrics = nn.ModuleDict(
            {name: MeanMetric() for name in ("loss", "force_loss", "excess", "distance_to_analytic", "nn_ratio")}
        )
        self._analytic: AnalyticForce | None = None
        self._losses: list[Tensor] = []  # since the last log
        self._images = 0  # since the last optimizer step
        self._window_images = 0  # since the last log
        self._clock = 0.0
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

    def check_guidance(self, guidance: float) -> None:
        """Raises a `UserError` unless the model was trained for guidance by so much."""
        if guidance and not self.conditional:
            raise UserError(f"guidance is {guidance}, which needs a model that was trained with conditional true")
        if guidance and not self.label_dropout:
            raise UserError(f"guidance is {guidance}, which needs a model that was trained with some label_dropout")

    # The force

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

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """E[x_0 | x] as the network has learned it.

        Args:
            x: noisy samples, (N, *input_shape).
            sigma: standard deviation of their noise, above 0; one number or (N,).
            labels: int64 (N,); of a conditional model, none given stands for samples of any label.
            guidance: w of classifier-free guidance.

        Returns:
            (N, *input_shape), float32.
        """
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        network = self.ema or self.network
        outputs, c_skip, c_out = self._precondition(network, x, sigma, labels if self.conditional else None)
        if guidance:
            free, _, _ = self._precondition(network, x, sigma, None)
            outputs = outputs + guidance * (outputs - free)
        return self.mean + c_skip * (x - self.mean) + c_out * outputs

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The same as `denoise`."""
        return self.denoise(x, sigma, labels)

    # Sampling

    def denoiser(self, labels: Tensor | None = None, guidance: float = 0.0) -> Denoise:
        """E[x_0 | x] as a function of x and sigma alone, as solvers want it."""
        return lambda x, sigma: self.denoise(x, sigma, labels, guidance)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Draws `n` samples.

        Args:
            n: how many.
            labels: int64 (n,) for a conditional model; drawn uniformly where they are not given.
            generator: random numbers; the same ones give the same samples on every device.
            seeds: int64 (n,), one for each sample, in place of the generator: the same seed, and label, give the same
                sample in every batch.
            steps: of the solver; the model's own where it is not given, as for the rest.
            solver: see `zoo.diffusion.samplers`.
            guidance: w of classifier-free guidance.

        Returns:
            (n, *input_shape), images in [-1, 1].
        """
        solution = self._draw(n, labels, generator, seeds, steps, solver, guidance)
        return self._finish(solution.x)

    def trajectory(
        self,
        n: int,
        frames: int = 60,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        solver: str | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """The film of `n` samples on their way from noise, each picture shrunk to the data's own contrast.

        Returns:
            (frames, n, *input_shape); the first is noise.
        """
        solution = self._draw(n, labels, generator, seeds, frames - 1, solver, guidance, trajectory=True)
        sigmas = torch.tensor(noise_levels(frames - 1, self.sigma_min, self.sigma_max), device=self.device)
        shrink = self.sigma_data / (sigmas.square() + self.sigma_data.square()).sqrt()
        states = cast(Tensor, solution.states)
        return self._finish(self.mean + shrink.view(-1, 1, *[1] * len(self.input_shape)) * (states - self.mean))

    def interpolate(
        self, rows: int, steps: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples along great circles between pairs of noise, by the probability flow.

        Returns:
            (rows, steps, *input_shape).
        """
        with evaluating(self):
            generator = generator or fresh_generator()
            labels = self.draw_labels(rows, generator) if labels is None else labels.to(self.device)
            noise = SampleNoise(sample_seeds(rows, generator), self.input_shape, self.device)
            start, end = noise().flatten(1), noise().flatten(1)
            ways = [slerp(start, end, weight).view(-1, *self.input_shape) for weight in torch.linspace(0, 1, steps)]
            solver = self.solver if self.solver in DETERMINISTIC else "deis"
            sigmas = noise_levels(self.steps, self.sigma_min, self.sigma_max)
            denoise = self.denoiser(labels, self.guidance)
            ends = [solve(denoise, self.mean + self.sigma_max * way, sigmas, solver).x for way in ways]
            return self._finish(torch.stack(ends, dim=1))

    def _draw(
        self,
        n: int,
        labels: Tensor | None,
        generator: torch.Generator | None,
        seeds: Tensor | None,
        steps: int | None,
        solver: str | None,
        guidance: float | None,
        trajectory: bool = False,
    ) -> Solution:
        guidance = self.guidance if guidance is None else guidance
        self.check_guidance(guidance)
        with evaluating(self):
            generator = generator or fresh_generator()
            seeds = sample_seeds(n, generator) if seeds is None else seeds
            labels = self.draw_labels(n, generator) if labels is None else labels.to(self.device)
            noise = SampleNoise(seeds, self.input_shape, self.device)
            sigmas = noise_levels(self.steps if steps is None else steps, self.sigma_min, self.sigma_max)
            x = self.mean + sigmas[0] * noise()
            return solve(self.denoiser(labels, guidance), x, sigmas, solver or self.solver, noise, trajectory)

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
        if self.excess_samples and stage in ("fit", "validate") and hasattr(data, "split"):
            x, y = data.split("train")
            self._analytic = AnalyticForce(x, y if self.conditional else None, temperature=self.temperature)
        if stage == "fit" and self.compile_network:
            self.network.compile()

    def on_train_start(self) -> None:
        super().on_train_start()
        self._losses, self._images, self._window_images, self._clock = [], 0, 0, time.perf_counter()
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

    def weighted_loss(
        self, network: nn.Module, x: Tensor, noisy: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> Tensor:
        """EDM's loss for each sample, (N,): the squared error of what the network is to give, of unit variance.

        Args:
            network: the network, or its average.
            x: samples, (N, *input_shape).
            noisy: the same with noise.
            sigma: of the noise, (N,).
            labels: int64 (N,), `num_classes` for none, of a conditional model.
        """
        outputs, c_skip, c_out = self._precondition(network, noisy, sigma, labels)
        target = (x - self.mean - c_skip * (noisy - self.mean)) / c_out
        return (outputs - target).square().flatten(1).mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self._must_calibrate:
            rank_zero_warn("mean and sigma_data are measured on one batch, as the data module has no reference(n)")
            self.calibrate(cast(Tensor, self.all_gather(x)).reshape(-1, *self.input_shape))
            self._must_calibrate = False
        labels = None
        if self.conditional:
            hidden = torch.rand(len(y), device=y.device) < self.label_dropout
            labels = y.masked_fill(hidden, self.num_classes)
        sigma = self.stratified_noise_levels(len(x))
        noisy = x + column(sigma, x) * torch.randn_like(x)
        loss = self.weighted_loss(self.network, x, noisy, sigma, labels).mean()
        self._images += len(x)
        self._log_training(loss.detach(), len(x))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.network, self._images * self.trainer.world_size)
        self._images = 0

    def _log_training(self, loss: Tensor, images: int) -> None:
        """Logs means over the last `log_every_n_steps` batches, since a call costs more than a small step does."""
        self._losses.append(loss)
        self._window_images += images
        period: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not period or (self.trainer.fit_loop.total_batch_idx + 1) % period:
            return
        self.log("train/loss", torch.stack(self._losses).mean(), prog_bar=True)
        self.log("train/lr", cast(Any, self.optimizers()).param_groups[0]["lr"])
        now, before, total = time.perf_counter(), self._clock, self._window_images
        self._losses, self._window_images, self._clock = [], 0, now
        self.log("train/images_per_second", total * self.trainer.world_size / (now - before))

    # Validation

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure_loss(batch, batch_idx)
        if self.likelihood_samples and batch_idx == 0 and not self.trainer.sanity_checking:
            self._measure_likelihood(*batch)
        super().validation_step(batch, batch_idx)

    def log_likelihood(
        self, x: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Likelihood:
        """ln p of samples (N, *input_shape); see `zoo.diffusion.likelihood`."""
        levels, law = (self.sigma_min, self.sigma_max), (self.mean, self.sigma_data.item())
        with torch.inference_mode(False):  # in which Lightning validates, and which knows no derivatives
            denoise = self.denoiser(None if labels is None else labels.clone())
            return log_likelihood(denoise, x.clone(), *levels, *law, self.likelihood_probes, generator)

    def _measure_likelihood(self, x: Tensor, y: Tensor) -> None:
        """Of different samples on every rank, with the same random numbers in every validation."""
        x, labels = x[: self.likelihood_samples], y[: self.likelihood_samples] if self.conditional else None
        generator = torch.Generator().manual_seed(self.global_rank)
        image = len(self.input_shape) == 3
        with evaluating(self):
            log_prob = self.log_likelihood(dequantize(x, generator) if image else x, labels, generator).log_prob
        value = bits_per_dimension(log_prob, x[0].numel()) if image else -log_prob
        name = "val/bits_per_dim" if image else "val/nll"
        self.log(name, value.mean().float(), on_epoch=True, sync_dist=True, batch_size=len(x))
        error = value.std() / math.sqrt(len(x) * self.trainer.world_size)
        self.log(f"{name}_error", error.float(), on_epoch=True, sync_dist=True, batch_size=len(x))

    def _measure_loss(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The loss, by the same noise in every validation, and what it is beside that of the analytic force."""
        x, y = batch
        labels = y if self.conditional else None
        seed = batch_idx * self.trainer.world_size + self.global_rank
        generator = torch.Generator().manual_seed(seed)
        quantile = (torch.randperm(len(x), generator=generator) + 0.5) / len(x)
        sigma = (self.noise_mean + self.noise_std * torch.special.ndtri(quantile)).exp().to(x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        noisy = x + column(sigma, x) * noise
        error = (self.denoise(noisy, sigma, labels) - x).square().flatten(1).mean(1)
        loss = self._weight(sigma) * error
        self._log_mean("loss", loss)
        self._log_mean("force_loss", (2 * self.temperature / sigma.square()).square() * error)
        if self._analytic is not None and batch_idx == 0:
            few = slice(self.excess_samples)
            self._compare_with_analytic(
                x[few], labels if labels is None else labels[few], noise[few], sigma[few], loss[few]
            )

    def _compare_with_analytic(
        self, x: Tensor, labels: Tensor | None, noise: Tensor, sigma: Tensor, loss: Tensor
    ) -> None:
        """What of the loss the analytic force has, too, on held-out samples and on training samples.

        The analytic force is the best for training data, so what it loses there nobody can win: what the learned one
        loses on top of it is its mean squared distance from it (`val/distance_to_analytic`). On held-out samples the
        analytic force is no more than one among others, and the learned one beats it (`val/excess` below 0) as soon as
        it generalizes.
        """
        analytic = cast(AnalyticForce, self._analytic)
        best = analytic.denoise(x + column(sigma, x) * noise, sigma, labels)
        self._log_mean("excess", loss - self._weight(sigma) * (best - x).square().flatten(1).mean(1))
        few = slice(self.global_rank, None, self.trainer.world_size)
        train = analytic.data[few][: len(x)].to(x)
        labels = None if analytic.labels is None else analytic.labels[few][: len(x)].to(x.device)
        noise, sigma = noise[: len(train)], sigma[: len(train)]
        noisy = train + column(sigma, x) * noise
        distance = self.denoise(noisy, sigma, labels) - analytic.denoise(noisy, sigma, labels)
        self._log_mean("distance_to_analytic", self._weight(sigma) * distance.square().flatten(1).mean(1))

    def _weight(self, sigma: Tensor) -> Tensor:
        """EDM's weight of the denoiser's squared error, (N,)."""
        return 1 / sigma.square() + 1 / self.sigma_data.square()

    def inspect_samples(self, fake: Tensor, real: Tensor, batch_idx: int, split: str) -> None:
        """The alarm of memorization: how near samples are to the training data, beside how near held-out data is."""
        if split != "val" or batch_idx > 0 or self._analytic is None:
            return
        data = self._analytic.data.flatten(1).to(real)
        near = [torch.cdist(x[: self.excess_samples].flatten(1), data).amin(1).median() for x in (fake, real)]
        ratio = near[0] / near[1]
        self._log_mean("nn_ratio", ratio)
        if ratio < MEMORIZED and not self.trainer.sanity_checking:
            rank_zero_warn(
                f"samples lie {ratio:.2f} times as far from the training data as held-out data does: the model "
                "repeats what it has learned from; train it for less long, make it smaller, or give it more data"
            )

    def _log_mean(self, name: str, values: Tensor) -> None:
        metric = cast(MeanMetric, self.val_metrics[name])
        metric.update(values)
        self.log(f"val/{name}", metric)


def fresh_generator() -> torch.Generator:
    """A generator of its own, seeded by the global one: different every time, and repeated by the run's seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
