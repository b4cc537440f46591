"""The diffusion model as a LightningModule: a network that learns the force which runs diffusion backwards.

Noise levels and weights of the loss are those of EDM (Karras et al. 2022, arXiv 2206.00364). In the lecture's words the
network learns f' = 2 k_B T grad ln p. The loss is the squared error of the force, but for the factor (sigma^2 + sd^2)
sigma^2 / (2 k_B T sd)^2, without which it would grow beyond bounds as the noise goes to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.base import evaluating
from zoo.diffusion.force import AnalyticForce, Force, column
from zoo.diffusion.likelihood import Likelihood, bits_per_dimension, dequantize, log_likelihood
from zoo.diffusion.preconditioned import Preconditioned
from zoo.diffusion.process import Process
from zoo.diffusion.samplers import DETERMINISTIC, SOLVERS, Denoise, Solution, noise_levels, solve
from zoo.errors import UserError, check_at_least, check_choice
from zoo.generative import slerp

MEMORIZED = 1 / 3  # ratio of the distances to the nearest training sample, below which a warning is given


class MedianRatio(Metric):
    """The median of some numbers over the median of others, of all ranks; nan while there are none."""

    full_state_update = False
    above: list[Tensor]
    below: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("above", [], dist_reduce_fx="cat")
        self.add_state("below", [], dist_reduce_fx="cat")

    def update(self, above: Tensor, below: Tensor) -> None:
        """Adds numbers (N,) to either side."""
        self.above.append(above)
        self.below.append(below)

    def compute(self) -> Tensor:
        """The ratio, a scalar."""
        return dim_zero_cat(self.above).median() / dim_zero_cat(self.below).median()


class Diffusion(Preconditioned, Force):
    """Learns the force that turns noise back into samples, and draws by it.

    It is a `Force` like the analytic one: `denoise`, `score` and `force` take noisy samples and their noise level, and
    stand for the average of the weights where there is one.

    Args:
        input_shape: of one sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of labels in the data.
        solver: of the equation of motion; see `zoo.diffusion.samplers`.
        guidance: w of classifier-free guidance, E_w = E_label + w (E_label - E_none) (Ho and Salimans 2022, arXiv
            2207.12598, eq. 6); 0 for none. It doubles the evaluations of the network.
        diffusivity: D of the process. It sets the clock and nothing else.
        temperature: k_B T of the process. It is the unit of the force and nothing else.
        excess_samples: validation samples, the first ones, that the learned force is compared with the analytic one on,
            and as many drawn ones with the training data; 0 for none.
        likelihood_samples: of the first validation batch, whose likelihood is measured in bits per dimension (of
            points, as negative log-likelihood in nats); 0 for none. It takes hundreds of evaluations of the network.
        likelihood_probes: random vectors by which the divergence is estimated for it, 0 for the exact one; where it is
            not given, that up to 64 dimensions and one vector above.
        **kwargs: of `zoo.diffusion.preconditioned.Preconditioned`.
    """

    validated = ("loss", "force_loss", "excess", "distance_to_analytic")

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        solver: str = "deis",
        guidance: float = 0.0,
        diffusivity: float = 1.0,
        temperature: float = 1.0,
        excess_samples: int = 256,
        likelihood_samples: int = 0,
        likelihood_probes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **kwargs)
        check_choice("solver", solver, SOLVERS)
        check_at_least(0, excess_samples=excess_samples)
        check_at_least(0, likelihood_samples=likelihood_samples, likelihood_probes=likelihood_probes)
        self.process = Process(diffusivity, temperature)
        self.temperature = temperature
        self.solver, self.guidance = solver, guidance
        self.check_guidance(guidance)
        self.excess_samples = excess_samples
        self.likelihood_samples, self.likelihood_probes = likelihood_samples, likelihood_probes
        self.nearness = MedianRatio()
        self._analytic: AnalyticForce | None = None

    def check_guidance(self, guidance: float) -> None:
        """Raises a `UserError` unless the model was trained for guidance by so much."""
        if guidance and not self.conditional:
            raise UserError(f"guidance is {guidance}, which needs a model that was trained with conditional true")
        if guidance and not self.label_dropout:
            raise UserError(f"guidance is {guidance}, which needs a model that was trained with some label_dropout")

    # The force

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
            noise, labels = self._first_noise(rows, labels, generator, None)
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
            noise, labels = self._first_noise(n, labels, generator, seeds)
            sigmas = noise_levels(self.steps if steps is None else steps, self.sigma_min, self.sigma_max)
            x = self.mean + sigmas[0] * noise()
            return solve(self.denoiser(labels, guidance), x, sigmas, solver or self.solver, noise, trajectory)

    # Training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.excess_samples and stage in ("fit", "validate") and hasattr(data, "split"):
            x, y = data.split("train")
            self._analytic = AnalyticForce(x, y if self.conditional else None, temperature=self.temperature)

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
        x, labels = self.begin_batch(batch)
        sigma = self.stratified_noise_levels(len(x))
        noisy = x + column(sigma, x) * torch.randn_like(x)
        return self.end_batch(self.weighted_loss(self.network, x, noisy, sigma, labels).mean(), len(x))

    # Validation

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure_loss(batch)
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

    def _measure_loss(self, batch: tuple[Tensor, Tensor]) -> None:
        """The loss, by the same noise in every validation, and what it is beside that of the analytic force."""
        x, y = batch
        labels = y if self.conditional else None
        noise, sigma = self.fixed_noise(x)
        noisy = x + column(sigma, x) * noise
        error = (self.denoise(noisy, sigma, labels) - x).square().flatten(1).mean(1)
        loss = self._weight(sigma) * error
        self._log_mean("loss", loss)
        self._log_mean("force_loss", (2 * self.temperature / sigma.square()).square() * error)
        if self._analytic is not None:
            few = self._places < self.excess_samples
            if few.any():
                self._compare_with_analytic(
                    self._places[few], x[few], y[few] if self.conditional else None, noise[few], sigma[few], loss[few]
                )
            for name in ("excess", "distance_to_analytic"):  # also where this rank has none of them
                self.log(f"val/{name}", cast(MeanMetric, self.val_metrics[name]))

    def _compare_with_analytic(
        self, places: Tensor, x: Tensor, labels: Tensor | None, noise: Tensor, sigma: Tensor, loss: Tensor
    ) -> None:
        """What of the loss the analytic force has, too, on held-out samples and on training samples.

        The analytic force is the best for training data, so what it loses there nobody can win: what the learned one
        loses on top of it is its mean squared distance from it (`val/distance_to_analytic`). On held-out samples the
        analytic force is no more than one among others, and the learned one beats it (`val/excess` below 0) as soon as
        it generalizes.
        """
        analytic = cast(AnalyticForce, self._analytic)
        best = analytic.denoise(x + column(sigma, x) * noise, sigma, labels)
        excess = loss - self._weight(sigma) * (best - x).square().flatten(1).mean(1)
        cast(MeanMetric, self.val_metrics["excess"]).update(excess)
        places = places[places < len(analytic.data)]
        train = analytic.data[places].to(x)
        labels = None if analytic.labels is None else analytic.labels[places].to(x.device)
        noise, sigma = noise[: len(train)], sigma[: len(train)]
        noisy = train + column(sigma, x) * noise
        distance = self.denoise(noisy, sigma, labels) - analytic.denoise(noisy, sigma, labels)
        mean_square = self._weight(sigma) * distance.square().flatten(1).mean(1)
        cast(MeanMetric, self.val_metrics["distance_to_analytic"]).update(mean_square)

    def _weight(self, sigma: Tensor) -> Tensor:
        """EDM's weight of the denoiser's squared error, (N,)."""
        return 1 / sigma.square() + 1 / self.sigma_data.square()

    def inspect_samples(self, fake: Tensor, real: Tensor, batch_idx: int, split: str) -> None:
        """The alarm of memorization: how near samples are to the training data, beside how near held-out data is."""
        if split != "val" or self._analytic is None:
            return
        few = self._places < self.excess_samples
        if few.any() or batch_idx == 0:
            data = self._analytic.data.flatten(1).to(real)
            self.nearness.update(*(torch.cdist(x[few].flatten(1), data).amin(1) for x in (fake, real)))
        self.log("val/nn_ratio", self.nearness)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self._analytic is None or self.distance is None or self.trainer.sanity_checking:
            return
        ratio = self.nearness.compute()
        if ratio < MEMORIZED:
            rank_zero_warn(
                f"samples lie {ratio:.2f} times as far from the training data as held-out data does: the model "
                "repeats what it has learned from; train it for less long, make it smaller, or give it more data"
            )
