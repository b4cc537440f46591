"""The GAN as a LightningModule: two networks trained in alternation by manual optimization.

The lecture's game is min_G max_D V(D, G) = E log D(x) + E log(1 - D(G(z))); at its fixed point p_G = p_data, D = 1/2
and V = -log 4. The default is the relativistic loss with R1 and R2 penalties (R3GAN: Huang et al. 2024, arXiv
2501.05441), which has the same fixed point and converges where the minimax loss oscillates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from zoo._lightning import estimated_steps, find_unused_parameters, skip_step_count, unscaled_by_step
from zoo.errors import UserError, check_at_least, check_choice
from zoo.gradients import optimizer_parameters
from zoo.metrics import Throughput, log_is_due, log_values
from zoo.models.base import eval_mode
from zoo.models.ema import EMA
from zoo.models.exports import Export, Input, Part, label_inputs
from zoo.models.gan.losses import (
    ADVERSARIAL_LOSSES,
    AdversarialLoss,
    gradient_penalty,
    zero_centered_gradient_penalty,
)
from zoo.models.gan.network import DISCRIMINATORS, GENERATORS
from zoo.models.generative import GenerativeModule, slerp
from zoo.models.networks import build_network, check_output
from zoo.models.precision import cast_to, in_float32, widen
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_scheduler, gan_optimizer
from zoo.seeding import SampleNoise, sample_seeds

OWN_LOSS = "own"  # name in checkpoints of a loss that is not in `ADVERSARIAL_LOSSES`
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
GeneratorFactory = Callable[[Sequence[int], int, int], nn.Module]
DiscriminatorFactory = Callable[[Sequence[int], int], nn.Module]


class GAN(GenerativeModule):
    """Generative adversarial network: a generator and a discriminator trained against each other.

    Each batch is one step of the discriminator; every `n_critic` of them are followed by one step of the generator.
    Lightning's `global_step`, `max_steps` and the intervals of callbacks count the steps of the discriminator, that is
    batches (or groups of `accumulate_grad_batches` batches), not the steps of both optimizers. The Trainer's options
    `gradient_clip_val` and `accumulate_grad_batches` do not work with manual optimization; the model's options of the
    same names replace them.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        conditional: condition generator and discriminator on the class.
        latent_dim: length of the latent vector z ~ N(0, 1).
        generator: "mlp" for points and tiny images, "conv" for images whose sides can be halved to 4 to 8 pixels,
            "auto" to choose by the shape, the latter with a hidden layer more if the GAN is unconditional; or a factory
            that is handed `(input_shape, latent_dim, num_classes)`, or a module. It maps z (N, latent_dim) and labels,
            int64 (N,) or None, to samples (N, *input_shape).
        discriminator: likewise, with a factory that is handed `(input_shape, num_classes)`. It maps samples and labels
            to logits (N,). An unconditional GAN hands over 0 classes. With batch norm, data and samples are batches of
            their own.
        loss: adversarial loss by its name, or an `AdversarialLoss`; see `zoo.models.gan.losses`.
        penalty: gradient penalty on the discriminator: R1 on data, R2 on generated samples, both, or the Wasserstein
            gradient penalty between them.
        penalty_weight: weight of the penalty: gamma of R1 and R2, applied as gamma / 2, or lambda of the Wasserstein
            gradient penalty.
        penalty_interval: discriminator steps between two penalized steps; the weight is multiplied by it.
        n_critic: discriminator steps per generator step.
        accumulate_grad_batches: number of batches whose gradients are accumulated for one step of either network.
        gradient_clip_val: maximum norm of each network's gradient; 0 for no clipping.
        ema_half_life: half-life of the generator's moving average, in images; 0 for no average. Samples come from the
            average.
        extractor: feature extractor of the Fréchet distance; see `zoo.metrics.distance_for`.
        optimizer_g: factory of the generator's optimizer.
        optimizer_d: factory of the discriminator's optimizer.
        lr_scheduler_g: factory of the generator's learning-rate schedule, stepped with `global_step`; None for a
            constant learning rate.
        lr_scheduler_d: factory of the discriminator's learning-rate schedule.
    """

    exports = ("generator",)
    averaged_from = "generator"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        conditional: bool = False,
        latent_dim: int = 64,
        generator: Literal["auto", "mlp", "conv"] | GeneratorFactory = "auto",
        discriminator: Literal["auto", "mlp", "conv"] | DiscriminatorFactory = "auto",
        loss: Literal["minimax", "non_saturating", "hinge", "wasserstein", "relativistic"]
        | AdversarialLoss = "relativistic",
        penalty: Literal["none", "r1", "r2", "r1_r2", "gradient_penalty"] = "r1_r2",
        penalty_weight: float = 1.0,
        penalty_interval: int = 4,
        n_critic: int = 1,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float = 0.0,
        ema_half_life: float = 20_000,
        extractor: str = "auto",
        optimizer_g: OptimizerCallable = gan_optimizer,
        optimizer_d: OptimizerCallable = gan_optimizer,
        lr_scheduler_g: LRSchedulerCallable | None = WarmupDecay,
        lr_scheduler_d: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        factories = ["optimizer_g", "optimizer_d", "lr_scheduler_g", "lr_scheduler_d"]
        self.save_hyperparameters(ignore=["generator", "discriminator", "loss", *factories])
        check_choice("penalty", penalty, ("none", "r1", "r2", "r1_r2", "gradient_penalty"))
        check_at_least(
            1,
            latent_dim=latent_dim,
            penalty_interval=penalty_interval,
            n_critic=n_critic,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        check_at_least(
            0, penalty_weight=penalty_weight, gradient_clip_val=gradient_clip_val, ema_half_life=ema_half_life
        )
        self.automatic_optimization = False
        self.latent_dim = latent_dim
        self.adversarial_loss = self._find_loss(loss)
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self.penalty_interval = penalty_interval
        self.n_critic = n_critic
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.optimizer_g = optimizer_g
        self.optimizer_d = optimizer_d
        self.lr_scheduler_g = lr_scheduler_g
        self.lr_scheduler_d = lr_scheduler_d
        self._build_networks(generator, discriminator)
        self.ema = EMA(self.generator, ema_half_life) if ema_half_life > 0 else None
        self._batches: list[tuple[Tensor, Tensor | None]] = []
        self._throughput = Throughput()
        self._penalty: Tensor | None = None
        self._untrained: dict[str, list[nn.Parameter]] = {}  # what no optimizer trains, such as the biases beside Muon
        self._stepping: list[nn.Parameter] = []  # parameters whose gradient is measured or clipped in the current step
        self._grad_norm = torch.tensor(0.0)

    def _find_loss(self, loss: Any) -> AdversarialLoss:
        """Loss by its name, or one of the user's own, which a checkpoint names but does not hold."""
        if isinstance(loss, AdversarialLoss):
            self.hparams["loss"] = OWN_LOSS
            return loss
        if loss == OWN_LOSS:
            raise UserError("the checkpoint was trained with a loss of your own: hand it in again, loss=...")
        check_choice("loss", loss, ADVERSARIAL_LOSSES)
        self.hparams["loss"] = loss
        return ADVERSARIAL_LOSSES[loss]

    def _build_networks(self, generator: Any, discriminator: Any) -> None:
        classes = self.num_classes if self.conditional else 0
        self.generator, self.hparams["generator"] = build_network(
            "generator", generator, (self.input_shape, self.latent_dim, classes), GENERATORS
        )
        self.discriminator, self.hparams["discriminator"] = build_network(
            "discriminator", discriminator, (self.input_shape, classes), DISCRIMINATORS
        )
        self._separate_passes = any(isinstance(module, BATCH_NORMS) for module in self.discriminator.modules())
        labels = torch.zeros(2, dtype=torch.int64) if classes else None
        samples = torch.zeros(2, *self.input_shape)
        check_output("generator", self.generator, (torch.zeros(2, self.latent_dim), labels), samples.shape)
        check_output("discriminator", self.discriminator, (samples, labels), (2,))

    def sharded_networks(self) -> list[nn.Module]:
        return [self.generator, self.discriminator, *([] if self.ema is None else [self.ema.network])]

    # Sampling

    def latents(self, n: int) -> Tensor:
        """Draws z ~ N(0, 1), (n, latent_dim), on the model's device."""
        return torch.randn(n, self.latent_dim, device=self.device, dtype=torch.float32)

    def _seeded_latents(self, seeds: Tensor) -> SampleNoise:
        """Function that draws z ~ N(0, 1), (n, latent_dim), by the samples' seeds, int64 (n,)."""
        return SampleNoise(seeds, (self.latent_dim,), self.device)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (N, latent_dim), labels (N,) to samples (N, *input_shape), by the averaged generator if there is one."""
        return _run(self.ema or self.generator, z, labels)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Draws samples.

        Args:
            n: number of samples.
            labels: classes for a conditional GAN, int64 (n,); drawn uniformly by default, each by its sample's seed.
            generator: random number generator; the same state gives the same samples on every device, and the first of
                them are the same for every n.
            seeds: seed of each sample, int64 (n,), instead of a generator; the same seed and class give the same sample
                in every batch.

        Returns:
            (n, *input_shape), images in [-1, 1].
        """
        with eval_mode(self):
            seeds = sample_seeds(n, generator) if seeds is None else seeds
            labels = self.draw_labels(seeds) if labels is None else labels.to(self.device)
            return self(self._seeded_latents(seeds)(), labels).float()

    def seeded_latents(self, seeds: Tensor) -> Tensor:
        """Latent vectors (n, latent_dim) of the samples that are drawn with these seeds, int64 (n,)."""
        return self._seeded_latents(seeds)()

    def sample_latents(self, latents: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Samples (n, *input_shape) of latent vectors (n, latent_dim).

        Args:
            latents: latent vectors, standard normal in training.
            labels: classes for a conditional GAN, int64 (n,).
        """
        with eval_mode(self):
            return self(latents.to(self.device), None if labels is None else labels.to(self.device)).float()

    def interpolate(
        self, rows: int, steps: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples along great circles between pairs of latent vectors.

        Args:
            rows: number of pairs.
            steps: number of samples per pair, both ends included.
            labels: class of each pair for a conditional GAN, int64 (rows,).
            generator: random number generator.

        Returns:
            (rows, steps, *input_shape).
        """
        with eval_mode(self):
            seeds = sample_seeds(rows, generator)
            draw = self._seeded_latents(seeds)
            start, end = draw(), draw()
            labels = self.draw_labels(seeds) if labels is None else labels.to(self.device)
            weights = torch.linspace(0, 1, steps).tolist()
            return torch.stack([self(slerp(start, end, weight), labels).float() for weight in weights], dim=1)

    def trajectory(
        self, n: int, frames: int = 60, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples along closed great circles in latent space, as frames of an animation.

        Args:
            n: number of samples.
            frames: number of frames.
            labels: classes for a conditional GAN, int64 (n,).
            generator: random number generator.

        Returns:
            (frames, n, *input_shape).
        """
        with eval_mode(self):
            seeds = sample_seeds(n, generator)
            draw = self._seeded_latents(seeds)
            z, direction = draw(), draw()
            labels = self.draw_labels(seeds) if labels is None else labels.to(self.device)
            angles = torch.linspace(0, 2 * torch.pi, frames + 1)[:-1].tolist()
            images = [self(z * torch.tensor(a).cos() + direction * torch.tensor(a).sin(), labels) for a in angles]
            return torch.stack(images).float()

    def export_generator(self) -> Export:
        """The generator that draws samples, the averaged one if there is one."""
        latent = Input("standard normal latent vectors", (self.latent_dim,))
        return Export(
            Part(self.generator if self.ema is None else self.ema.network, lambda *inputs: self(*inputs).float()),
            {"z": latent, **label_inputs(self.num_classes - 1 if self.conditional else None)},
            "samples",
            self.input_shape,
        )

    # Training

    def run_averaged(self, batch: Any) -> None:
        x, labels = self.unpack(batch)
        self(self.latents(len(x)), labels)

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
        """Length of the run in discriminator steps."""
        batches = estimated_steps(self.trainer)
        if batches == self.trainer.max_steps:
            return batches
        steps = batches / self.accumulate_grad_batches
        return steps if self.trainer.max_steps == -1 else min(steps, self.trainer.max_steps)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and isinstance(self.trainer.strategy, DDPStrategy):
            # Each backward pass uses the parameters of one network only, which DDP reports as an error otherwise.
            find_unused_parameters(self.trainer.strategy)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._batches = []
        self._throughput.start()
        networks = {"g": self.generator, "d": self.discriminator}
        for (name, network), optimizer in zip(networks.items(), self.trainer.optimizers, strict=True):
            trained = {id(p) for p in optimizer_parameters(optimizer)}
            self._untrained[name] = [p for p in network.parameters() if id(p) not in trained]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["penalty"] = self._penalty

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        penalty = checkpoint.get("penalty")
        if penalty is not None and not (isinstance(penalty, Tensor) and penalty.shape == ()):
            raise UserError(f"penalty in the checkpoint is a {type(penalty).__name__}, not a number")
        self._penalty = penalty

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, labels = self.unpack(batch)
        optimizer_g, optimizer_d = cast(list[LightningOptimizer], self.optimizers())
        log = log_is_due(self)
        self._throughput.update(len(x))
        self._batches.append((x, labels))
        complete = len(self._batches) == self.accumulate_grad_batches or self.trainer.is_last_batch
        metrics = self._backward_discriminator(x, labels, optimizer_d, complete)
        if complete:
            metrics |= self._step(optimizer_d, "d", log)
            if self.global_step % self.n_critic == 0:
                metrics |= self._backward_generator(optimizer_g)
                metrics |= self._step(optimizer_g, "g", log, counted=False)
                if self.ema is not None:
                    images = sum(x.shape[0] for x, _ in self._batches) * self.n_critic * self.trainer.world_size
                    self.ema.update(self.generator, images)
            for scheduler in self._schedulers():
                scheduler.step()
            self._batches = []
        if log:
            self._log(metrics)

    def _backward_discriminator(
        self, x: Tensor, labels: Tensor | None, optimizer: LightningOptimizer, complete: bool
    ) -> dict[str, Tensor]:
        """One backward pass of the discriminator's loss, with the penalty if it is due."""
        due = self.penalty != "none" and self.global_step % self.penalty_interval == 0
        with self._training_only(optimizer, sync=complete):
            with torch.no_grad():
                fake = _run(self.generator, self.latents(len(x)), labels)
            if due:
                # In float32: second derivatives overflow or underflow in half precision.
                with torch.autocast(x.device.type, enabled=False):
                    real_logits, fake_logits, penalty = self._penalized_logits(x, fake, labels)
            else:
                real_logits, fake_logits = self._logits(self.discriminator, x, fake, labels)
                penalty = x.new_zeros(())
            loss = self.adversarial_loss.discriminator(real_logits, fake_logits)
            factor = 1.0 if self.penalty == "gradient_penalty" else 0.5
            total = loss + penalty * (self.penalty_weight * factor * self.penalty_interval)
            options: dict[str, Any] = {}
            if due and not isinstance(self.trainer.strategy, ParallelStrategy):
                # Without gradients at the samples, which nobody needs. DDP and FSDP have hooks there.
                own = optimizer_parameters(optimizer.optimizer)
                options = {"inputs": [p for p in own if p.requires_grad] or None}
            self.manual_backward(total / self.accumulate_grad_batches, **options)
        metrics = {"loss_d": loss, "real_logits": real_logits, "fake_logits": fake_logits}
        if due:
            self._penalty = penalty.detach()
        return metrics | ({} if self._penalty is None else {"penalty": self._penalty})

    def _logits(
        self, discriminator: Callable[..., Tensor], real: Tensor, fake: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N,) of data and of generated samples, in one pass unless batch norm would mix the two.

        The generator's step judges samples by themselves. Normalized together with data in the discriminator's step,
        they would be judged by another function there.
        """
        if self._separate_passes:
            return _run(discriminator, real, labels), _run(discriminator, fake, labels)
        both = None if labels is None else torch.cat([labels, labels])
        real_logits, fake_logits = _run(discriminator, torch.cat([real, fake]), both).chunk(2)
        return real_logits, fake_logits

    def _penalized_logits(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of data and of generated samples, and the gradient penalty without its weight."""
        discriminator = in_float32(self.discriminator)
        if self.penalty == "gradient_penalty":
            penalty = gradient_penalty(lambda u: _run(discriminator, u, labels), real, fake)
            return *self._logits(discriminator, real, fake, labels), penalty
        # Leaves of their own: the batch is used again in the generator's step, and belongs to the callbacks.
        real, fake = (x.detach().requires_grad_(name in self.penalty) for name, x in (("r1", real), ("r2", fake)))
        real_logits, fake_logits = self._logits(discriminator, real, fake, labels)
        penalized = [(x, logits) for x, logits in ((real, real_logits), (fake, fake_logits)) if x.requires_grad]
        inputs, logits = zip(*penalized, strict=True)
        penalty = zero_centered_gradient_penalty(torch.cat(logits), *inputs)
        return real_logits, fake_logits, penalty

    def _backward_generator(self, optimizer: LightningOptimizer) -> dict[str, Tensor]:
        """Backward passes of the generator's loss over the accumulated batches, with new latents."""
        losses = []
        for index, (x, labels) in enumerate(self._batches):
            with self._training_only(optimizer, sync=index == len(self._batches) - 1):
                fake = _run(self.generator, self.latents(len(x)), labels)
                fake_logits = _run(self.discriminator, fake, labels)
                real_logits = torch.zeros_like(fake_logits)
                if self.adversarial_loss.needs_real:
                    with torch.no_grad():
                        real_logits = _run(self.discriminator, x, labels)
                loss = self.adversarial_loss.generator(real_logits, fake_logits)
                self.manual_backward(loss / self.accumulate_grad_batches)
                losses.append(loss.detach())
        return {"loss_g": torch.stack(losses).mean()}

    @contextmanager
    def _training_only(self, optimizer: LightningOptimizer, sync: bool) -> Iterator[None]:
        """Inside the context only this optimizer's parameters get gradients, reduced over ranks if `sync` is true."""
        own = {id(p) for p in optimizer_parameters(optimizer.optimizer)}
        others = [p for other in self.trainer.optimizers for p in optimizer_parameters(other) if id(p) not in own]
        frozen = [p for p in others if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        strategy = self.trainer.strategy
        blocks = not sync and isinstance(strategy, ParallelStrategy)
        try:
            with cast(ParallelStrategy, strategy).block_backward_sync() if blocks else nullcontext():
                yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _step(self, optimizer: LightningOptimizer, name: str, log: bool, counted: bool = True) -> dict[str, Tensor]:
        """Clips one network's gradients, steps and clears them; only counted steps advance `global_step`."""
        measured = self.gradient_clip_val or log
        self._stepping = optimizer_parameters(optimizer.optimizer) if measured else []
        if not counted:
            skip_step_count(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        for parameter in self._untrained[name]:
            parameter.grad = None
        return {f"grad_norm_{name}": self._grad_norm} if self._stepping else {}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # In this hook, because gradients in 16-bit precision have just been unscaled, unless the optimizer is fused.
        if self._stepping:
            scale = unscaled_by_step(self.trainer, optimizer)
            norm = get_total_norm([p.grad for p in self._stepping if p.grad is not None])
            self._grad_norm = norm if scale is None else norm / scale.to(norm)
            if self.gradient_clip_val:
                clip_grads_with_norm_(self._stepping, self.gradient_clip_val, self._grad_norm)

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        return [] if schedulers is None else schedulers if isinstance(schedulers, list) else [schedulers]

    # Logging

    def _log(self, metrics: dict[str, Tensor]) -> None:
        """Logs the metrics of one step."""
        real_logits, fake_logits = metrics.pop("real_logits").detach(), metrics.pop("fake_logits").detach()
        values: dict[str, Any] = {name: tensor.detach() for name, tensor in metrics.items()}
        probability = self.adversarial_loss.probability(real_logits, fake_logits)
        if probability is None:
            values |= {"logit_real": real_logits.mean(), "logit_fake": fake_logits.mean()}
        else:
            values |= {"d_real": probability[0].mean(), "d_fake": probability[1].mean()}
            values |= {"value": self.adversarial_loss.value(real_logits, fake_logits), "value_optimum": -math.log(4)}
        values["images_per_second"] = self._throughput.per_second(self.trainer.world_size)
        shown = [f"train/{name}" for name in ("d_real", "d_fake", "logit_real", "logit_fake")]
        log_values(self, {f"train/{name}": value for name, value in values.items()}, shown)


def _run(network: Callable[..., Tensor], x: Tensor, labels: Tensor | None) -> Tensor:
    """Runs a network on latent vectors or samples (N, ...) in the dtype of its weights; the output is float32."""
    return widen(network(cast_to(network, x) if isinstance(network, nn.Module) else x, labels))
