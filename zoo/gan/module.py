"""The GAN as a LightningModule: two networks, trained in alternation by manual optimization.

The lecture's game is min_G max_D V(D, G) = E log D(x) + E log(1 - D(G(z))); at its fixed point p_G = p_data, D = 1/2
and V = -log 4. The default is the relativistic pairing with R1 and R2 (R3GAN: Huang et al. 2024, arXiv 2501.05441),
which has the same fixed point and converges where the lecture's form oscillates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from zoo.base import evaluating
from zoo.ema import EMA
from zoo.errors import UserError, check_at_least, check_choice
from zoo.gan.losses import GAMES, gradient_penalty, gradient_square, value
from zoo.gan.network import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator, halvings
from zoo.generative import GenerativeModule, slerp
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_scheduler

PROBABILISTIC = ("minimax", "non_saturating")


def adam(parameters: Any) -> Optimizer:
    """Adam without momentum, the default of both networks: momentum makes the game's rotation worse."""
    return torch.optim.Adam(parameters, lr=5e-4, betas=(0.0, 0.99))


class GAN(GenerativeModule):
    """A generator and a discriminator that learn from each other.

    One batch is one step of the discriminator; after every `d_steps` of them the generator takes one. Lightning's
    `global_step`, `max_steps` and the periods of callbacks count the steps of the discriminator, that is batches (or
    windows of `accumulate` batches), not the steps of both optimizers. The Trainer's own `gradient_clip_val` and
    `accumulate_grad_batches` do not work with manual optimization: `clip_norm` and `accumulate` stand in for them.

    Args:
        input_shape: of one sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of labels in the data.
        conditional: draw samples by label; the discriminator judges them by label too.
        latent_dim: length of the latent vector z ~ N(0, 1).
        architecture: "mlp" for points and tiny images, "conv" for images whose sides can be halved to 4 to 8 pixels,
            "auto" for the one that suits the shape.
        width: hidden units of the MLPs (default 256), or channels of the convolutions at half the full size (32).
        depth: hidden layers of the MLPs (default 2), or the number of times that the convolutions halve the image.
        loss: the game; see `zoo.gan.losses`.
        penalty: on the discriminator's gradient: R1 on data, R2 on samples, or towards norm 1 between both.
        penalty_weight: gamma of R1 and R2, which enters as gamma / 2, or lambda of the gradient penalty.
        penalty_every: discriminator steps from one penalty to the next; its weight is multiplied by as much.
        d_steps: steps of the discriminator for one of the generator.
        accumulate: batches whose gradients are summed up for one step of either network.
        clip_norm: largest norm of each network's gradient, 0 for no limit.
        ema_half_life: of the generator's moving average, in images; 0 for none. Samples come from the average.
        extractor: of the features that `val/fd` is measured in; see `zoo.generative.distance_for`.
        optimizer_g: makes the generator's optimizer.
        optimizer_d: makes the discriminator's optimizer.
        lr_scheduler_g: makes the generator's learning-rate schedule, stepped with `global_step`; None for a constant.
        lr_scheduler_d: the same for the discriminator.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        conditional: bool = False,
        latent_dim: int = 64,
        architecture: Literal["auto", "mlp", "conv"] = "auto",
        width: int | None = None,
        depth: int | None = None,
        loss: Literal["minimax", "non_saturating", "hinge", "wasserstein", "relativistic"] = "relativistic",
        penalty: Literal["none", "r1", "r2", "r1_r2", "gradient_penalty"] = "r1_r2",
        penalty_weight: float = 1.0,
        penalty_every: int = 4,
        d_steps: int = 1,
        accumulate: int = 1,
        clip_norm: float = 0.0,
        ema_half_life: float = 20_000,
        extractor: str = "auto",
        optimizer_g: OptimizerCallable = adam,
        optimizer_d: OptimizerCallable = adam,
        lr_scheduler_g: LRSchedulerCallable | None = WarmupDecay,
        lr_scheduler_d: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        self.save_hyperparameters(ignore=["optimizer_g", "optimizer_d", "lr_scheduler_g", "lr_scheduler_d"])
        check_choice("loss", loss, GAMES)
        check_choice("penalty", penalty, ("none", "r1", "r2", "r1_r2", "gradient_penalty"))
        check_choice("architecture", architecture, ("auto", "mlp", "conv"))
        check_at_least(1, latent_dim=latent_dim, penalty_every=penalty_every, d_steps=d_steps, accumulate=accumulate)
        check_at_least(1, width=width, depth=depth)
        check_at_least(0, penalty_weight=penalty_weight, clip_norm=clip_norm, ema_half_life=ema_half_life)
        self.automatic_optimization = False
        self.latent_dim = latent_dim
        self.loss_name = loss
        self.game = GAMES[loss]
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self.penalty_every = penalty_every
        self.d_steps = d_steps
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.optimizer_g = optimizer_g
        self.optimizer_d = optimizer_d
        self.lr_scheduler_g = lr_scheduler_g
        self.lr_scheduler_d = lr_scheduler_d
        self.generator, self.discriminator = self._build_networks(architecture, width, depth)
        self.ema = EMA(self.generator, ema_half_life) if ema_half_life > 0 else None
        self._batches: list[tuple[Tensor, Tensor | None]] = []
        self._clock: tuple[float, int] | None = None
        self._penalty: Tensor | None = None
        self._stepping: list[nn.Parameter] = []  # those whose gradient is measured or clipped in the step being taken
        self._grad_norm = torch.tensor(0.0)

    def _build_networks(self, architecture: str, width: int | None, depth: int | None) -> tuple[nn.Module, nn.Module]:
        image = len(self.input_shape) == 3
        levels = halvings(self.input_shape) if image else 0
        if architecture == "auto":
            architecture = "conv" if levels else "mlp"
        if architecture == "conv" and not levels:
            raise UserError(
                f"architecture conv needs images with even sides above 8 pixels, not the shape "
                f"{self.input_shape}; use architecture mlp"
            )
        classes = self.num_classes if self.conditional else 0
        if architecture == "mlp":
            size = {"width": width or 256, "depth": depth or 2}
            return (
                MLPGenerator(self.input_shape, self.latent_dim, **size, num_classes=classes),
                MLPDiscriminator(self.input_shape, **size, num_classes=classes),
            )
        if depth and depth > levels:
            raise UserError(f"depth {depth} halves {self.input_shape} too often; at most {levels} times")
        size = {"width": width or 32, "depth": depth or levels}
        return (
            ConvGenerator(self.input_shape, self.latent_dim, **size, num_classes=classes),
            ConvDiscriminator(self.input_shape, **size, num_classes=classes),
        )

    # Sampling

    def latents(self, n: int, generator: torch.Generator | None = None, seeds: Tensor | None = None) -> Tensor:
        """Draws z ~ N(0, 1), (n, latent_dim), on the model's device whatever the generator's; or each by its seed."""
        if seeds is not None:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
            return torch.stack([torch.randn(self.latent_dim, generator=g) for g in generators]).to(self.device)
        device = generator.device if generator else self.device
        return torch.randn(n, self.latent_dim, generator=generator, device=device).to(self.device)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (N, latent_dim), labels (N,) to samples (N, *input_shape), by the averaged generator where there is one."""
        return (self.ema or self.generator)(z, labels)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Draws `n` samples.

        Args:
            n: how many.
            labels: int64 (n,) for a conditional GAN; drawn uniformly where they are not given.
            generator: random numbers; the same ones give the same samples on every device.
            seeds: int64 (n,), one for each sample, in place of the generator: the same seed, and label, give the same
                sample in every batch.

        Returns:
            (n, *input_shape), images in [-1, 1].
        """
        with evaluating(self):
            z = self.latents(n, generator, seeds)
            labels = self.draw_labels(n, generator) if labels is None else labels.to(self.device)
            return self(z, labels).float()

    def interpolate(
        self, rows: int, steps: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples along great circles between pairs of latent vectors.

        Args:
            rows: number of pairs.
            steps: samples on each way, both ends included.
            labels: int64 (rows,) for a conditional GAN.
            generator: random numbers.

        Returns:
            (rows, steps, *input_shape).
        """
        with evaluating(self):
            start, end = self.latents(rows, generator), self.latents(rows, generator)
            labels = self.draw_labels(rows, generator) if labels is None else labels.to(self.device)
            ways = [self(slerp(start, end, weight), labels).float() for weight in torch.linspace(0, 1, steps).tolist()]
            return torch.stack(ways, dim=1)

    def trajectory(
        self, n: int, frames: int = 60, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """A film of `n` samples that wander on great circles through latent space and end where they began.

        Returns:
            (frames, n, *input_shape).
        """
        with evaluating(self):
            z, direction = self.latents(n, generator), self.latents(n, generator)
            labels = self.draw_labels(n, generator) if labels is None else labels.to(self.device)
            angles = torch.linspace(0, 2 * torch.pi, frames + 1)[:-1].tolist()
            films = [self(z * torch.tensor(a).cos() + direction * torch.tensor(a).sin(), labels) for a in angles]
            return torch.stack(films).float()

    # Training

    def configure_optimizers(self) -> Any:
        optimizers = [
            self.optimizer_g(self.generator.parameters()),
            self.optimizer_d(self.discriminator.parameters()),
        ]
        total = self._total_steps()
        factories = (self.lr_scheduler_g, self.lr_scheduler_d)
        schedulers = [build_scheduler(f, o, total) for f, o in zip(factories, optimizers, strict=True)]
        return optimizers, [scheduler for scheduler in schedulers if scheduler is not None]

    def _total_steps(self) -> int | float:
        """Length of the run in steps of the discriminator."""
        batches = self.trainer.estimated_stepping_batches
        if batches == self.trainer.max_steps:
            return batches
        steps = batches / self.accumulate
        return steps if self.trainer.max_steps == -1 else min(steps, self.trainer.max_steps)

    def configure_callbacks(self) -> list[Callback]:
        # Nothing to configure: of the hooks this one comes before Lightning's check of the same, whose message does
        # not say what to do instead.
        if self.trainer.accumulate_grad_batches != 1 or self.trainer.gradient_clip_val is not None:
            raise UserError(
                "the GAN's two optimizers need its own options: use model.accumulate and model.clip_norm instead of "
                "trainer.accumulate_grad_batches and trainer.gradient_clip_val"
            )
        return []

    def setup(self, stage: str) -> None:
        strategy = self.trainer.strategy
        if stage == "fit" and isinstance(strategy, DDPStrategy):
            # Each backward pass reaches the parameters of one network only, which DDP takes for an error unless it
            # is told to look for unused ones.
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def on_train_start(self) -> None:
        super().on_train_start()
        self._batches = []
        self._clock = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["penalty"] = self._penalty

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._penalty = checkpoint.get("penalty")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        labels = y if self.conditional else None
        optimizer_g, optimizer_d = cast(list[LightningOptimizer], self.optimizers())
        log = self._should_log()
        self._batches.append((x, labels))
        complete = len(self._batches) == self.accumulate or self.trainer.is_last_batch
        metrics = self._backward_discriminator(x, labels, optimizer_d, complete)
        if complete:
            metrics |= self._step(optimizer_d, self.discriminator, "d", log)
            if self.global_step % self.d_steps == 0:
                metrics |= self._backward_generator(optimizer_g)
                metrics |= self._step(optimizer_g, self.generator, "g", log, counted=False)
                if self.ema is not None:
                    images = sum(len(x) for x, _ in self._batches) * self.d_steps * self.trainer.world_size
                    self.ema.update(self.generator, images)
            for scheduler in self._schedulers():
                scheduler.step()
            self._batches = []
        if log:
            self._log(metrics)

    def _backward_discriminator(
        self, x: Tensor, labels: Tensor | None, optimizer: LightningOptimizer, complete: bool
    ) -> dict[str, Tensor]:
        """One backward pass of the discriminator's loss, the penalty in it when it is due."""
        due = self.penalty != "none" and self.global_step % self.penalty_every == 0
        with self._training_only(optimizer, sync=complete):
            with torch.no_grad():
                fake = self.generator(self.latents(len(x)), labels).to(x.dtype)
            if due:
                # In float32: second derivatives of half-precision numbers overflow or lose all digits.
                with torch.autocast(x.device.type, enabled=False):
                    real_logits, fake_logits, penalty = self._penalized_logits(x.float(), fake.float(), labels)
            else:
                real_logits, fake_logits = self._logits(x, fake, labels)
                penalty = x.new_zeros(())
            loss = self.game.discriminator(real_logits, fake_logits)
            factor = 1.0 if self.penalty == "gradient_penalty" else 0.5
            total = loss + penalty * (self.penalty_weight * factor * self.penalty_every)
            self.manual_backward(total / self.accumulate)
        metrics = {"loss_d": loss, "real_logits": real_logits, "fake_logits": fake_logits}
        if due:
            self._penalty = penalty.detach()
        return metrics | ({} if self._penalty is None else {"penalty": self._penalty})

    def _logits(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (N,) of data and of samples, in one pass."""
        both = None if labels is None else torch.cat([labels, labels])
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake]), both).float().chunk(2)
        return real_logits, fake_logits

    def _penalized_logits(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of data and of samples, and the penalty on the discriminator's gradient, without its weight."""
        if self.penalty == "gradient_penalty":
            penalty = gradient_penalty(lambda u: self.discriminator(u, labels), real, fake)
            return *self._logits(real, fake, labels), penalty
        real.requires_grad_("r1" in self.penalty)
        fake.requires_grad_("r2" in self.penalty)
        real_logits, fake_logits = self._logits(real, fake, labels)
        penalty = real.new_zeros(())
        if "r1" in self.penalty:
            penalty = penalty + gradient_square(real_logits, real)
        if "r2" in self.penalty:
            penalty = penalty + gradient_square(fake_logits, fake)
        return real_logits, fake_logits, penalty

    def _backward_generator(self, optimizer: LightningOptimizer) -> dict[str, Tensor]:
        """Backward passes of the generator's loss over the window, with new latents."""
        losses = []
        for index, (x, labels) in enumerate(self._batches):
            with self._training_only(optimizer, sync=index == len(self._batches) - 1):
                fake = self.generator(self.latents(len(x)), labels)
                with torch.no_grad():
                    real_logits = self.discriminator(x, labels).float()
                loss = self.game.generator(real_logits, self.discriminator(fake, labels).float())
                self.manual_backward(loss / self.accumulate)
                losses.append(loss.detach())
        return {"loss_g": torch.stack(losses).mean()}

    @contextmanager
    def _training_only(self, optimizer: LightningOptimizer, sync: bool) -> Iterator[None]:
        """Only this optimizer's parameters get gradients inside, reduced over the ranks where `sync` is true."""
        with ExitStack() as stack:
            stack.enter_context(self.toggled_optimizer(optimizer))
            strategy = self.trainer.strategy
            if not sync and isinstance(strategy, ParallelStrategy):
                stack.enter_context(strategy.block_backward_sync())
            yield

    def _step(
        self, optimizer: LightningOptimizer, network: nn.Module, name: str, log: bool, counted: bool = True
    ) -> dict[str, Tensor]:
        """Clips, steps and clears one network's gradients; only counted steps move `global_step`."""
        self._stepping = list(network.parameters()) if self.clip_norm or log else []
        if not counted:
            # The manual loop counts a step in these two hooks, which it sets anew before every batch.
            optimizer._on_before_step = optimizer._on_after_step = _nothing
        optimizer.step()
        optimizer.zero_grad()
        return {f"grad_norm_{name}": self._grad_norm} if self._stepping else {}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here, where the scale of 16-bit training has just been taken off the gradients.
        if self._stepping:
            self._grad_norm = get_total_norm([p.grad for p in self._stepping if p.grad is not None])
            if self.clip_norm:
                clip_grads_with_norm_(self._stepping, self.clip_norm, self._grad_norm)

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        return [] if schedulers is None else schedulers if isinstance(schedulers, list) else [schedulers]

    # Logging

    def _should_log(self) -> bool:
        period: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.trainer.fit_loop.total_batch_idx + 1) % period == 0

    def _log(self, metrics: dict[str, Tensor]) -> None:
        """Logs the step; only every `log_every_n_steps` batches, since a call costs more than a small step does."""
        real_logits, fake_logits = metrics.pop("real_logits").detach(), metrics.pop("fake_logits").detach()
        values: dict[str, Any] = {name: tensor.detach() for name, tensor in metrics.items()}
        if self.loss_name in PROBABILISTIC:
            values |= {"d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean()}
            values |= {"value": value(real_logits, fake_logits), "value_optimum": -math.log(4)}
        elif self.loss_name == "relativistic":
            # The logits share a free offset, so D is the probability that of a pair the first is the real one.
            margin = real_logits - fake_logits
            values |= {"d_real": margin.sigmoid().mean(), "d_fake": (-margin).sigmoid().mean()}
            values |= {"value": value(margin, -margin), "value_optimum": -math.log(4)}
        else:
            values |= {"logit_real": real_logits.mean(), "logit_fake": fake_logits.mean()}
        if (rate := self._images_per_second(len(real_logits))) is not None:
            values["images_per_second"] = rate
        shown = [name for name in ("d_real", "d_fake", "logit_real", "logit_fake") if name in values]
        self.log_dict({f"train/{name}": values.pop(name) for name in shown}, prog_bar=True)
        self.log_dict({f"train/{name}": number for name, number in values.items()})

    def _images_per_second(self, batch_size: int) -> float | None:
        """Images that all devices went through since the last call, by the time that it took, validation included."""
        now, batch = time.perf_counter(), self.trainer.fit_loop.total_batch_idx
        before, self._clock = self._clock, (now, batch)
        if before is None:
            return None
        return (batch - before[1]) * batch_size * self.trainer.world_size / (now - before[0])


def _nothing() -> None:
    pass
