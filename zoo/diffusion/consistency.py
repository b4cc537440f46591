"""A student that does in one or two steps what its teacher, a diffusion model, does in ten.

A consistency model (Song et al. 2023, arXiv 2303.01469) maps every noisy sample to the end of its way along the
probability flow at once, where a diffusion model gives the mean of all ends. It is tuned from a trained diffusion model
(Geng et al. 2024, arXiv 2406.14548): at first it is asked for the clean sample, which is what its teacher has learned;
then for what it itself makes of the same sample with somewhat less of the same noise, by ever smaller differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.base import evaluating
from zoo.checkpoints import load_model
from zoo.diffusion.force import column
from zoo.diffusion.module import Diffusion
from zoo.diffusion.preconditioned import Preconditioned
from zoo.diffusion.samplers import state_dtype
from zoo.errors import UserError, check_at_least

#: Settings that the student must have from its teacher, since it goes on with its weights.
INHERITED = (
    "conditional", "architecture", "widths", "blocks", "patch", "attention", "sigma_min", "sigma_max", "sigma_data",
)  # fmt: skip
FIRST_DIVISOR = 2.0  # of the noise level, whose part the difference is
GROWTH = 0.8  # share of the run in which the divisor grows
SMALL = 1e-6  # a noise level that stands for 0


class ConsistencyModel(Preconditioned):
    """A diffusion model's student: samples in one or two evaluations of the network.

    Args:
        input_shape: of one sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of labels in the data.
        teacher: checkpoint of the `Diffusion` whose network, settings and weights it begins with; needed for training.
        steps: of drawing, each one evaluation of the network.
        sigma_middle: noise level that drawing goes back to in its last step, where there is more than one.
        divisor: at the end of training the difference of two noise levels is about this part of the higher one.
        smooth: error, in standard deviations of the network's output, below which the loss is a square (pseudo-Huber).
        noise_mean: mean of ln(sigma) in training.
        noise_std: standard deviation of ln(sigma) in training.
        **kwargs: of `zoo.diffusion.preconditioned.Preconditioned`; with a teacher, network and noise levels are its.

    Raises:
        UserError: the teacher is no diffusion model of such data.
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
        source = _load_teacher(teacher, input_shape, num_classes) if teacher else None
        if source is not None:
            kwargs.update({name: source.hparams[name] for name in INHERITED if name in source.hparams})
        super().__init__(input_shape, num_classes, steps=steps, noise_mean=noise_mean, noise_std=noise_std, **kwargs)
        check_at_least(FIRST_DIVISOR, divisor=divisor)
        if not smooth > 0:
            raise UserError(f"smooth is {smooth}; it must be above 0")
        if not self.sigma_min < sigma_middle < self.sigma_max:
            raise UserError(f"sigma_middle is {sigma_middle}; it must be between {self.sigma_min} and {self.sigma_max}")
        self.sigma_middle, self.divisor, self.smooth = sigma_middle, divisor, smooth
        if source is not None:
            weights = (source.ema.network if source.ema is not None else source.network).state_dict()
            for network in [self.network, *([self.ema.network] if self.ema is not None else [])]:
                network.load_state_dict(weights)
            self.mean.copy_(source.mean)
            self.sigma_data.copy_(source.sigma_data)
            self.calibrated.copy_(source.calibrated)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["teacher"] = None  # the checkpoint holds its own weights

    def end(self, network: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Where the probability flow takes noisy samples (Song et al. 2023, eq. 5), which are kept at sigma = 0.

        Args:
            network: the network, or its average.
            x: noisy samples, (N, *input_shape).
            sigma: standard deviation of their noise, (N,).
            labels: int64 (N,), `num_classes` for none, of a conditional model.
        """
        outputs, c_skip, c_out = self._precondition(network, x, sigma, labels)
        return self.mean + c_skip * (x - self.mean) + c_out * outputs

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
        """Draws `n` samples, by multistep consistency sampling (Song et al. 2023, algorithm 1).

        Args:
            n: how many.
            labels: int64 (n,) for a conditional model; drawn uniformly where they are not given.
            generator: random numbers; the same ones give the same samples on every device.
            seeds: int64 (n,), one for each sample, in place of the generator: the same seed, and label, give the same
                sample in every batch.
            steps: evaluations of the network; the model's own where it is not given.

        Returns:
            (n, *input_shape), images in [-1, 1].
        """
        with evaluating(self):
            noise, labels = self._first_noise(n, labels, generator, seeds)
            levels = self.noise_levels(self.steps if steps is None else steps)
            x = self.mean + levels[0] * noise().to(state_dtype(self.device))
            for sigma, after in pairwise(levels):
                level = torch.full((n,), sigma, device=self.device)
                x = self.end(self.ema or self.network, x.float(), level, labels)
                if after > 0:
                    x = x + after * noise()
            return self._finish(x)

    def noise_levels(self, steps: int) -> list[float]:
        """From `sigma_max` to `sigma_middle` by equal factors, and 0: steps + 1 of them."""
        check_at_least(1, steps=steps)
        ratio = (self.sigma_middle / self.sigma_max) ** (1 / max(1, steps - 1))
        return [self.sigma_max * ratio**index for index in range(steps)] + [0.0]

    # Training

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.calibrated:
            raise UserError(
                "a ConsistencyModel learns from a trained Diffusion: give its checkpoint by --model.teacher"
            )
        super().setup(stage)

    def less_noise(self, sigma: Tensor, divisor: float) -> Tensor:
        """The lower noise level of each pair (N,), 0 where the difference would be larger than sigma.

        Geng et al. 2024, section 4: sigma (1 - n(sigma) / divisor) with n from 5 at low to 1 at high noise.
        """
        return (sigma * (1 - (1 + 8 * torch.sigmoid(-sigma)) / divisor)).clamp_min(0)

    def consistency_loss(
        self, network: nn.Module, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None, divisor: float
    ) -> Tensor:
        """How far apart the ends of two points of one way are, (N,), in standard deviations of the network's output.

        Args:
            network: whose ends they are; the one with less noise has no gradient.
            x: samples, (N, *input_shape).
            noise: of unit variance, the same at both points, (N, *input_shape).
            sigma: the higher noise level, (N,).
            labels: int64 (N,), or None.
            divisor: see `less_noise`.
        """
        less = self.less_noise(sigma, divisor)
        with torch.no_grad():
            target = self.end(network, x + column(less, x) * noise, less.clamp_min(SMALL), labels)
            target = torch.where(column(less, x) > 0, target, x)
        error = self.end(network, x + column(sigma, x) * noise, sigma, labels) - target
        c_out = sigma * self.sigma_data / (sigma.square() + self.sigma_data.square()).sqrt()
        mean_square = (error / column(c_out, x)).square().flatten(1).mean(1)
        return (mean_square + self.smooth**2).sqrt() - self.smooth

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, labels = self.begin_batch(batch)
        sigma = self.stratified_noise_levels(len(x)).clamp(self.sigma_min, self.sigma_max)
        progress = self.trainer.global_step / (GROWTH * self.trainer.estimated_stepping_batches)
        divisor = FIRST_DIVISOR * (self.divisor / FIRST_DIVISOR) ** min(1.0, progress)
        loss = self.consistency_loss(self.network, x, torch.randn_like(x), sigma, labels, divisor)
        return self.end_batch(loss.mean(), len(x))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        noise, sigma = self.fixed_noise(x)
        labels = y if self.conditional else None
        sigma = sigma.clamp(self.sigma_min, self.sigma_max)
        loss = self.consistency_loss(self.ema or self.network, x, noise, sigma, labels, self.divisor)
        self._log_mean("loss", loss)
        super().validation_step(batch, batch_idx)


def _load_teacher(path: str, input_shape: Sequence[int], num_classes: int) -> Diffusion:
    try:
        teacher = load_model(path)
    except UserError as error:
        raise UserError(str(error).replace("--ckpt_path", "teacher")) from error
    if not isinstance(teacher, Diffusion):
        raise UserError(f"teacher {path} holds a {type(teacher).__name__}; a student learns from a Diffusion")
    if teacher.input_shape != tuple(input_shape) or (teacher.conditional and teacher.num_classes != num_classes):
        raise UserError(
            f"teacher {path} was trained on samples of the shape {teacher.input_shape} in {teacher.num_classes} "
            f"classes, and the data has {tuple(input_shape)} in {num_classes}; give the data that it was trained on"
        )
    return teacher
