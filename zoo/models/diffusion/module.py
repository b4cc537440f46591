"""Diffusion model as a LightningModule: a network that learns the force of the reverse diffusion.

Noise levels and loss weights are those of EDM (Karras et al. 2022, arXiv 2206.00364). In the lecture's notation the
network learns f' = 2 k_B T grad ln p. The loss is the squared error of the force times (sigma^2 + sd^2) sigma^2 /
(2 k_B T sd)^2, a factor without which it diverges as sigma goes to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from zoo.contracts import WholeSplits, data_of, offers
from zoo.errors import UserError, check_at_least, check_choice
from zoo.metrics import Mean, NearCopies, nearest_distances
from zoo.models.base import eval_mode
from zoo.models.diffusion.base import DenoisingModule
from zoo.models.diffusion.denoiser import IdealDenoiser, ScoreModel, append_dims
from zoo.models.diffusion.likelihood import Likelihood, bits_per_dimension, dequantize, log_likelihood
from zoo.models.diffusion.process import Process
from zoo.models.diffusion.solvers import DETERMINISTIC, SOLVERS, Denoise, Noise, Solution, karras_sigmas, solve
from zoo.models.exports import Export, Input, label_inputs
from zoo.models.generative import slerp
from zoo.seeding import upload


class Diffusion(DenoisingModule, ScoreModel):
    """Diffusion model: a denoiser that is trained at all noise levels, and solvers that draw with it.

    Like `IdealDenoiser` it is a `ScoreModel`: `denoise`, `score` and `force` are functions of noisy samples and their
    noise level. They use the moving average of the weights if there is one.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        solver: name of the solver; see `zoo.models.diffusion.solvers`.
        guidance_scale: weight w of classifier-free guidance, E_w = E_class + w (E_class - E_none) (Ho and Salimans
            2022, arXiv 2207.12598, eq. 6); 0 for none. It doubles the evaluations of the network.
        class_dropout: probability that a label is dropped in training, for classifier-free guidance.
        diffusivity: diffusion coefficient D, which sets the unit of time: the noise level sigma is reached at
            sigma^2 / 2D. Only the solver reverse_process runs in time, and its samples do not depend on D.
        temperature: thermal energy k_B T, which sets the unit of the force.
        excess_samples: number of validation samples on which the network is compared with the ideal denoiser, and of
            generated samples that are compared with the training data, which is then kept on the device; 0 for none.
        likelihood_samples: number of validation samples whose likelihood is measured, in bits per dimension for images
            and as negative log-likelihood in nats for points; 0 for none. It needs hundreds of evaluations. Of a
            conditional model it is that of p(x | class) for the sample's own class, not of p(x).
        likelihood_probes: number of random vectors by which the divergence is estimated; 0 for the exact divergence
            (default: exact up to 64 dimensions, otherwise one vector).
        **kwargs: arguments of `zoo.models.diffusion.base.DenoisingModule`.
    """

    validated = ("loss", "force_loss", "excess", "distance_to_ideal")
    option_choices = {"solver": tuple(SOLVERS)}

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        solver: str = "deis",
        guidance_scale: float = 0.0,
        class_dropout: float = 0.1,
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
        if not 0 <= class_dropout <= 1:
            raise UserError(f"class_dropout is {class_dropout}; it must be between 0 and 1")
        self.class_dropout = class_dropout
        self.process = Process(diffusivity, temperature)
        self.temperature = temperature
        self.solver, self.guidance_scale = solver, guidance_scale
        self.check_guidance(guidance_scale)
        self.excess_samples = excess_samples
        self.likelihood_samples, self.likelihood_probes = likelihood_samples, likelihood_probes
        self.near_copies = NearCopies()
        self._ideal: IdealDenoiser | None = None

    def check_guidance(self, guidance_scale: float) -> None:
        """Raises a `UserError` for a weight that is not finite, or that needs a model trained otherwise."""
        if not math.isfinite(guidance_scale):
            raise UserError(f"guidance_scale is {guidance_scale}; it must be a finite number")
        for name, trained in {
            "conditional true": self.conditional,
            "class_dropout above 0": self.class_dropout,
        }.items():
            if guidance_scale and not trained:
                raise UserError(f"guidance_scale is {guidance_scale}, which needs a model trained with {name}")

    # Denoiser

    def denoise(
        self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, guidance_scale: float = 0.0
    ) -> Tensor:
        """E[x_0 | x] according to the network.

        Args:
            x: noisy samples, (N, *input_shape).
            sigma: noise level, above 0; one number or (N,).
            labels: classes, int64 (N,); None for the unconditional denoiser of a conditional model.
            guidance_scale: weight w of classifier-free guidance.

        Returns:
            (N, *input_shape), float32.
        """
        return self.averaged(x, sigma, labels if self.conditional else None, guidance_scale)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Same as `denoise`."""
        return self.denoise(x, sigma, labels)

    # Sampling

    def guided(self, labels: Tensor | None = None, guidance_scale: float = 0.0) -> Denoise:
        """E[x_0 | x] as a function of x and sigma, as solvers need it, for these labels."""
        return lambda x, sigma: self.denoise(x, sigma, labels, guidance_scale)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        steps: int | None = None,
        solver: str | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Draws samples.

        Args:
            n: number of samples.
            labels: classes for a conditional model, int64 (n,); drawn uniformly by default, each by its sample's seed.
            generator: random number generator; the same state gives the same samples on every device, and the first of
                them are the same for every n.
            seeds: seed of each sample, int64 (n,), instead of a generator; the same seed and class give the same sample
                in every batch.
            steps: number of solver steps (default: the model's own).
            solver: euler, heun, dpmpp_2m, ipndm, deis, ancestral, predictor_corrector or reverse_process; see
                `zoo.models.diffusion.solvers` (default: the model's own).
            guidance_scale: weight w of classifier-free guidance (default: the model's own).

        Returns:
            (n, *input_shape), images in [-1, 1].
        """
        solution = self._draw(n, labels, generator, seeds, steps, solver, guidance_scale)
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
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Samples on their trajectory from noise to data, each state scaled to the standard deviation of the data.

        Args:
            n: number of samples.
            frames: number of states, both ends included.
            labels: classes for a conditional model, int64 (n,).
            generator: random number generator.
            seeds: seed of each sample, int64 (n,), instead of a generator.
            solver: see `sample` (default: the model's own).
            guidance_scale: weight w of classifier-free guidance (default: the model's own).

        Returns:
            (frames, n, *input_shape); the first is noise.
        """
        solution = self._draw(n, labels, generator, seeds, frames - 1, solver, guidance_scale, trajectory=True)
        sigmas = torch.tensor(karras_sigmas(frames - 1, self.sigma_min, self.sigma_max), device=self.device)
        mean, sigma_data = self.denoiser.mean, self.denoiser.sigma_data
        shrink = sigma_data / (sigmas.square() + sigma_data.square()).sqrt()
        states = cast(Tensor, solution.states)
        return self._finish(mean + shrink.view(-1, 1, *[1] * len(self.input_shape)) * (states - mean))

    def interpolate(
        self, rows: int, steps: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples along great circles between pairs of noise vectors, by the probability flow.

        Args:
            rows: number of pairs.
            steps: number of samples per pair, both ends included.
            labels: class of each pair for a conditional model, int64 (rows,).
            generator: random number generator.

        Returns:
            (rows, steps, *input_shape).
        """
        with eval_mode(self):
            noise, labels = self._first_noise(rows, labels, generator, None)
            start, end = noise().flatten(1), noise().flatten(1)
            starts = [slerp(start, end, weight) for weight in torch.linspace(0, 1, steps)]
            return torch.stack([self._follow_flow(x, labels) for x in starts], dim=1)

    def seeded_latents(self, seeds: Tensor) -> Tensor:
        """Noise (n, D) of the samples that are drawn with these seeds, int64 (n,), flattened and of unit variance."""
        return self._first_noise(len(seeds), None, None, seeds)[0]().flatten(1)

    def sample_latents(self, latents: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Samples (n, *input_shape) at the ends of the probability flow from noise.

        Args:
            latents: noise of unit variance, (n, D); see `seeded_latents`.
            labels: classes for a conditional model, int64 (n,); no class by default.
        """
        with eval_mode(self):
            return self._follow_flow(latents.to(self.device), None if labels is None else labels.to(self.device))

    def _follow_flow(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Samples (n, *input_shape) of noise of unit variance (n, D), by a solver without random numbers."""
        noise = latents.view(-1, *self.input_shape)
        solver = self.solver if self.solver in DETERMINISTIC else "deis"
        sigmas = karras_sigmas(self.steps, self.sigma_min, self.sigma_max)
        denoise = self.guided(labels, 0.0 if labels is None else self.guidance_scale)
        return self._finish(solve(denoise, self.denoiser.mean + self.sigma_max * noise, sigmas, solver).x)

    def _draw(
        self,
        n: int,
        labels: Tensor | None,
        generator: torch.Generator | None,
        seeds: Tensor | None,
        steps: int | None,
        solver: str | None,
        guidance_scale: float | None,
        trajectory: bool = False,
    ) -> Solution:
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        self.check_guidance(guidance_scale)
        with eval_mode(self):
            noise, labels = self._first_noise(n, labels, generator, seeds)
            denoise = self.guided(labels, guidance_scale)
            return self._solve(
                denoise, noise, self.steps if steps is None else steps, solver or self.solver, trajectory
            )

    def _solve(self, denoise: Denoise, noise: Noise, steps: int, solver: str, trajectory: bool = False) -> Solution:
        """Solves from noise of the highest level to data."""
        sigmas = karras_sigmas(steps, self.sigma_min, self.sigma_max)
        x = self.averaged.mean + sigmas[0] * noise()
        physics = {"process": self.process} if solver == "reverse_process" else {}
        return solve(denoise, x, sigmas, solver, noise, trajectory, **physics)

    def export_sampler(
        self, *, steps: int | None = None, solver: str | None = None, guidance_scale: float | None = None
    ) -> Export:
        """The whole solver, from noise to samples.

        Args:
            steps: number of solver steps (default: the model's own).
            solver: euler, heun, dpmpp_2m, ipndm, deis, ancestral, predictor_corrector or reverse_process; see
                `zoo.models.diffusion.solvers` (default: the model's own). The last three take the noise of every draw.
            guidance_scale: weight w of classifier-free guidance (default: the model's own).
        """
        steps = self.steps if steps is None else steps
        solver = self.solver if solver is None else solver
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        self.check_guidance(scale)

        def draw(noise: Noise, labels: Tensor | None) -> Tensor:
            return self._finish(self._solve(self.guided(labels, scale), noise, steps, solver).x)

        return self._export_sampler(draw, {"steps": steps, "solver": solver, "guidance_scale": scale})

    def _label_inputs(self) -> dict[str, Input]:
        return label_inputs(self.num_classes if self.conditional else None)  # the highest label is no class

    # Training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = data_of(self.trainer)
        if self._compares_with_ideal(stage) and offers(data, WholeSplits):
            try:
                x, y = data.split("train")
            except UserError as error:  # larger than memory
                rank_zero_info(f"{type(self).__name__} leaves out the comparison with the ideal denoiser: {error}")
                return
            self._ideal = IdealDenoiser(x, y if self.conditional else None, temperature=self.temperature)

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self._ideal = None  # with the training data

    def _compares_with_ideal(self, stage: str) -> bool:
        return self.excess_samples > 0 and stage in ("fit", "validate")

    def uses_of_data(self, stage: str) -> dict[type, str]:
        ideal = {WholeSplits: "the comparison with the ideal denoiser and the search for copies of training data"}
        return super().uses_of_data(stage) | (ideal if self._compares_with_ideal(stage) else {})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = self.begin_batch(batch)
        if labels is not None:
            dropped = torch.rand(len(labels), device=labels.device) < self.class_dropout
            labels = labels.masked_fill(dropped, self.num_classes)
        sigma = self.stratified_sigmas(len(x))
        noisy = x + append_dims(sigma, x) * torch.randn_like(x)
        return self.end_batch(self.denoiser.loss(x, noisy, sigma, labels).mean(), len(x))

    # Validation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure_loss(batch)
        if self.likelihood_samples and batch_idx == 0 and not self.trainer.sanity_checking:
            self._measure_likelihood(*self.unpack(batch))
        super().validation_step(batch, batch_idx)

    def log_likelihood(
        self, x: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Likelihood:
        """ln p(x | class) of samples (N, *input_shape) with labels (N,), or ln p(x) without.

        See `zoo.models.diffusion.likelihood`. A sample of equally frequent classes has ln p(x) >= ln p(x | class) - ln
        num_classes.
        """
        sigmas, moments = (self.sigma_min, self.sigma_max), (self.denoiser.mean, self.denoiser.sigma_data.item())
        with torch.inference_mode(False):  # Lightning validates in inference mode, which has no derivatives
            denoise = self.guided(None if labels is None else labels.clone())
            return log_likelihood(denoise, x.clone(), *sigmas, *moments, self.likelihood_probes, generator)

    def _measure_likelihood(self, x: Tensor, labels: Tensor | None) -> None:
        """Logs the likelihood of different samples on every rank, with the same random numbers in every validation.

        Of a conditional model it is that of p(x | class), which is not compared with the p(x) of an unconditional one.
        """
        x, labels = x[: self.likelihood_samples], None if labels is None else labels[: self.likelihood_samples]
        generator = torch.Generator().manual_seed(self.global_rank)
        image = len(self.input_shape) == 3
        with eval_mode(self):
            log_prob = self.log_likelihood(dequantize(x, generator) if image else x, labels, generator).log_prob
        value = bits_per_dimension(log_prob, x[0].numel()) if image else -log_prob
        name = "val/bits_per_dim" if image else "val/nll"
        self.log(name, value.mean().float(), on_epoch=True, sync_dist=True, batch_size=len(x))
        error = value.std() / math.sqrt(len(x) * self.trainer.world_size)
        self.log(f"{name}_error", error.float(), on_epoch=True, sync_dist=True, batch_size=len(x))

    def _measure_loss(self, batch: Any) -> None:
        """Logs the loss, with the same noise in every validation, and its excess over the ideal denoiser's."""
        x, labels = self.unpack(batch)
        noise, sigma = self.fixed_noise(x)
        noisy = x + append_dims(sigma, x) * noise
        error = (self.denoise(noisy, sigma, labels) - x).square().flatten(1).mean(1)
        loss = self.denoiser.weight(sigma) * error
        self._log_mean("loss", loss)
        self._log_mean("force_loss", (2 * self.temperature / sigma.square()).square() * error)
        if self._ideal is not None and not self.trainer.sanity_checking:
            n = self._count_compared()
            if n:
                chosen = None if labels is None else labels[:n]
                self._compare_with_ideal(self._indices[:n], x[:n], chosen, noise[:n], sigma[:n], loss[:n])
            for name in ("excess", "distance_to_ideal"):  # on every rank, also without samples
                self.log(f"val/{name}", cast(Mean, self.val_metrics[name]))

    def _count_compared(self) -> int:
        """Number of the batch's samples, its first ones, that are among the `excess_samples` first of the split."""
        return int((self._indices < self.excess_samples).sum())

    def _ideal_on(self, device: torch.device) -> IdealDenoiser:
        """The ideal denoiser, with its data on a device, where it stays until the run ends."""
        self._ideal = cast(IdealDenoiser, self._ideal).to(device)
        return self._ideal

    def _compare_with_ideal(
        self, indices: Tensor, x: Tensor, labels: Tensor | None, noise: Tensor, sigma: Tensor, loss: Tensor
    ) -> None:
        """Compares the network with the ideal denoiser, on held-out samples and on training samples.

        On training data the ideal denoiser has the lowest possible loss, and the excess of the network's loss is its
        mean squared distance from it (`val/distance_to_ideal`). On held-out data the ideal denoiser is not optimal: a
        network that generalizes has a lower loss (`val/excess` below 0).
        """
        ideal = self._ideal_on(x.device)
        best = ideal.denoise(x + append_dims(sigma, x) * noise, sigma, labels)
        excess = loss - self.denoiser.weight(sigma) * (best - x).square().flatten(1).mean(1)
        known = ~best.flatten(1).isnan().any(1)  # NaN for a class without training samples
        cast(Mean, self.val_metrics["excess"]).update(excess.where(known, 0.0), known.float())
        indices = indices[indices < len(ideal.data)]
        if not len(indices):  # fewer training samples; torch's pixel_unshuffle returns an empty batch unchanged
            return
        train = ideal.data[upload(indices, x.device)].to(x)
        labels = None if ideal.labels is None else upload(ideal.labels[indices], x.device)
        noise, sigma = noise[: len(train)], sigma[: len(train)]
        noisy = train + append_dims(sigma, x) * noise
        distance = self.denoise(noisy, sigma, labels) - ideal.denoise(noisy, sigma, labels)
        mean_square = self.denoiser.weight(sigma) * distance.square().flatten(1).mean(1)
        cast(Mean, self.val_metrics["distance_to_ideal"]).update(mean_square)

    def inspect_samples(self, fake: Tensor, real: Tensor, batch_idx: int, split: str) -> None:
        """Looks for memorization: distances of samples, and of held-out data, to the nearest training sample."""
        if split != "val" or self._ideal is None or self.trainer.sanity_checking:
            return
        n = self._count_compared()
        if n or batch_idx == 0:
            data = self._ideal_on(fake.device).data.to(fake)
            self.near_copies.update(*(nearest_distances(x[:n], data) for x in (fake, real.to(fake))))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self._ideal is None or self.distance is None or self.trainer.sanity_checking:
            return
        share, expected, limit = torch.stack(self.near_copies.compute()).tolist()
        self.near_copies.reset()
        self.log("val/near_copies", share, sync_dist=True)
        if share > limit:
            rank_zero_warn(
                f"{share:.0%} of the samples are nearer to the training data than {1 - expected:.0%} of held-out data "
                f"are, and chance would be {expected:.0%}: the model repeats its training data; train it for fewer "
                "steps, make it smaller, or use more data"
            )
