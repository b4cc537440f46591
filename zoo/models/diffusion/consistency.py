"""Consistency model: samples in one or two steps, tuned from a diffusion model, which needs about ten.

A consistency model (Song et al. 2023, arXiv 2303.01469) maps every noisy sample to the end of its trajectory along the
probability flow, whereas a diffusion model predicts the mean of all clean samples. It is tuned from a trained diffusion
model (Geng et al. 2024, arXiv 2406.14548): at first the target is the clean sample, as in diffusion training; then it
is the model's own output for the same sample with less of the same noise. The difference of the two noise levels
shrinks during training. No label is dropped, since a student is only asked for samples of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.reading import load_model
from zoo.errors import UserError, check_at_least, check_at_most
from zoo.models.base import eval_mode
from zoo.models.diffusion.base import DenoisingModule
from zoo.models.diffusion.denoiser import append_dims
from zoo.models.diffusion.module import Diffusion
from zoo.models.diffusion.solvers import MOST_STEPS, Noise
from zoo.models.exports import Export

#: Options that the student inherits from its teacher together with the weights.
INHERITED = ("conditional", "network", "parametrization", "sigma_min", "sigma_max", "sigma_data")
FIRST_DIVISOR = 2.0  # divisor at the start of training
GROWTH = 0.8  # fraction of the run in which the divisor grows
SMALL = 1e-6  # replaces a noise level of 0, whose logarithm is infinite


class ConsistencyModel(DenoisingModule):
    """Consistency model, tuned from a diffusion model: samples in one or two evaluations of the network.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        teacher: checkpoint of the `Diffusion` model from which network, options and weights are taken; required for
            training.
        steps: number of sampling steps, each one evaluation of the network.
        sigma_middle: noise level of the last step, if there is more than one.
        divisor: ratio of the higher noise level to the difference of the two levels, at the end of training.
        smooth: error, in standard deviations of the network's output, below which the loss is quadratic
            (pseudo-Huber).
        noise_mean: mean of ln(sigma) in training.
        noise_std: standard deviation of ln(sigma) in training.
        **kwargs: arguments of `zoo.models.diffusion.base.DenoisingModule`; the network, the parametrization and the
            noise levels are the teacher's, if there is one. A teacher with a network of your own needs `network`.

    Raises:
        UserError: the teacher is not a diffusion model, or was trained on data of another shape.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        teacher: str | None = None,
        steps: int = 2,
        sigma_middle: float = 0.8,
        divisor: float = 256.0,
        smooth: float = 0.03,
        noise_mean: float = -1.1,
        noise_std: float = 2.0,
        **kwargs: Any,
    ) -> None:
        handed = {"network": kwargs["network"]} if kwargs.get("network", "auto") != "auto" else {}
        source = _load_teacher(teacher, input_shape, num_classes, handed) if teacher else None
        if source is not None:
            kwargs.update({name: source.hparams[name] for name in INHERITED if name in source.hparams} | handed)
        super().__init__(input_shape, num_classes, steps=steps, noise_mean=noise_mean, noise_std=noise_std, **kwargs)
        check_at_least(FIRST_DIVISOR, divisor=divisor)
        if not smooth > 0:
            raise UserError(f"smooth is {smooth}; it must be above 0")
        if not self.sigma_min < sigma_middle < self.sigma_max:
            raise UserError(f"sigma_middle is {sigma_middle}; it must be between {self.sigma_min} and {self.sigma_max}")
        self.sigma_middle, self.divisor, self.smooth = sigma_middle, divisor, smooth
        if source is not None:
            weights = source.averaged.state_dict()
            for denoiser in self._denoisers():
                denoiser.load_state_dict(weights)
            self.calibrated.copy_(source.calibrated)
            self.hparams["teacher"] = None  # a checkpoint holds its own weights

    # Sampling

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Draws samples by multistep consistency sampling (Song et al. 2023, algorithm 1).

        Args:
            n: number of samples.
            labels: classes for a conditional model, int64 (n,); drawn uniformly by default, each by its sample's seed.
            generator: random number generator; the same state gives the same samples on every device, and the first of
                them are the same for every n.
            seeds: seed of each sample, int64 (n,), instead of a generator; the same seed and class give the same sample
                in every batch.
            steps: number of sampling steps, each one evaluation of the network (default: the model's own).

        Returns:
            (n, *input_shape), images in [-1, 1].
        """
        with eval_mode(self):
            noise, labels = self._first_noise(n, labels, generator, seeds)
            return self._draw(noise, labels, self.steps if steps is None else steps)

    def _draw(self, noise: Noise, labels: Tensor | None, steps: int) -> Tensor:
        sigmas = self.sampling_sigmas(steps)
        x = self.averaged.mean + sigmas[0] * noise()
        for sigma, after in pairwise(sigmas):
            x = self.averaged(x, sigma, labels)
            if after > 0:
                x = x + after * noise()
        return self._finish(x)

    def export_sampler(self, *, steps: int | None = None) -> Export:
        """Multistep consistency sampling, from noise to samples.

        Args:
            steps: number of sampling steps, each of which takes noise of its own (default: the model's own).
        """
        steps = self.steps if steps is None else steps
        return self._export_sampler(lambda noise, labels: self._draw(noise, labels, steps), {"steps": steps})

    def sampling_sigmas(self, steps: int) -> list[float]:
        """Noise levels from `sigma_max` to `sigma_middle` by equal factors, and 0: steps + 1 of them."""
        check_at_least(1, steps=steps)
        check_at_most(MOST_STEPS, steps=steps)
        ratio = (self.sigma_middle / self.sigma_max) ** (1 / max(1, steps - 1))
        return [self.sigma_max * ratio**index for index in range(steps)] + [0.0]

    # Training

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.calibrated:
            raise UserError(
                "a ConsistencyModel is tuned from a trained Diffusion model: set --model.teacher to its checkpoint"
            )
        super().setup(stage)

    def next_sigma(self, sigma: Tensor, divisor: float) -> Tensor:
        """Lower noise level of each pair, (N,); 0 if the difference would exceed sigma.

        Geng et al. 2024, section 4: sigma (1 - n(sigma) / divisor) with n from 5 at low to 1 at high noise.

        Args:
            sigma: higher noise levels, (N,).
            divisor: ratio of the higher noise level to the difference, for n = 1.
        """
        return (sigma * (1 - (1 + 8 * torch.sigmoid(-sigma)) / divisor)).clamp_min(0)

    def consistency_loss(
        self, denoiser: nn.Module, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None, divisor: float
    ) -> Tensor:
        """Distance of the outputs at two noise levels of one trajectory, (N,), as a pseudo-Huber loss.

        The denoiser is the consistency function, which maps a noisy sample to the end of the probability flow through
        it: its preconditioning makes it the identity at sigma = 0 (Song et al. 2023, eq. 5).

        Args:
            denoiser: denoiser, or its moving average; its output at the lower noise level has no gradient.
            x: samples, (N, *input_shape).
            noise: standard normal noise, the same at both levels, (N, *input_shape).
            sigma: higher noise level, (N,).
            labels: classes of a conditional model, int64 (N,), or None.
            divisor: see `next_sigma`.
        """
        lower = self.next_sigma(sigma, divisor)
        with torch.no_grad():
            target = denoiser(x + append_dims(lower, x) * noise, lower.clamp_min(SMALL), labels)
            target = torch.where(append_dims(lower, x) > 0, target, x)
        error = denoiser(x + append_dims(sigma, x) * noise, sigma, labels) - target
        mean_square = self.denoiser.weight(sigma) * error.square().flatten(1).mean(1)
        return (mean_square + self.smooth**2).sqrt() - self.smooth

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = self.begin_batch(batch)
        sigma = self.stratified_sigmas(len(x)).clamp(self.sigma_min, self.sigma_max)
        progress = self.trainer.global_step / (GROWTH * self.trainer.estimated_stepping_batches)
        divisor = FIRST_DIVISOR * (self.divisor / FIRST_DIVISOR) ** min(1.0, progress)
        loss = self.consistency_loss(self.denoiser, x, torch.randn_like(x), sigma, labels, divisor)
        return self.end_batch(loss.mean(), len(x))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, labels = self.unpack(batch)
        noise, sigma = self.fixed_noise(x)
        sigma = sigma.clamp(self.sigma_min, self.sigma_max)
        loss = self.consistency_loss(self.averaged, x, noise, sigma, labels, self.divisor)
        self._log_mean("loss", loss)
        super().validation_step(batch, batch_idx)


def _load_teacher(path: str, input_shape: Sequence[int], num_classes: int, handed: Mapping[str, Any]) -> Diffusion:
    try:
        teacher = load_model(path, **handed)
    except UserError as error:
        raise UserError(str(error).replace("--ckpt_path", "teacher")) from error
    if not isinstance(teacher, Diffusion):
        raise UserError(f"teacher {path} holds a {type(teacher).__name__}; the teacher must be a Diffusion")
    if teacher.input_shape != tuple(input_shape) or (teacher.conditional and teacher.num_classes != num_classes):
        raise UserError(
            f"teacher {path} was trained on samples of the shape {teacher.input_shape} in {teacher.num_classes} "
            f"classes, and the data has {tuple(input_shape)} in {num_classes}; use the data that it was trained on"
        )
    return teacher
