"""The variational autoencoder as a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from vae_plugin.network import VAENetwork
from zoo.errors import UserError, check_at_least
from zoo.metrics import WindowedMetrics
from zoo.models.base import eval_mode
from zoo.models.ema import EMA
from zoo.models.exports import Export, Input, Part, label_inputs
from zoo.models.generative import GenerativeModule
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay
from zoo.seeding import SampleNoise, sample_seeds


def vae_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """Adam with a learning rate of 0.002."""
    return torch.optim.Adam(parameters, lr=2e-3)


class VAE(GenerativeModule):
    """Variational autoencoder with a learned pixel variance.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        conditional: condition encoder and decoder on the class.
        latent_dim: length of the latent vector z ~ N(0, 1).
        width: units of the hidden layers.
        ema_half_life: half-life of the weights' moving average, in images; 0 for no average.
        extractor: feature extractor of the Fréchet distance; see `zoo.metrics.distance_for`.
        optimizer: factory of the optimizer.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        conditional: bool = False,
        latent_dim: int = 16,
        width: int = 256,
        ema_half_life: float = 20_000,
        extractor: str = "auto",
        optimizer: OptimizerCallable = vae_optimizer,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__(input_shape, num_classes, conditional, extractor)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        check_at_least(1, latent_dim=latent_dim, width=width)
        check_at_least(0, ema_half_life=ema_half_life)
        self.latent_dim = latent_dim
        self.network = VAENetwork(self.input_shape, num_classes if conditional else 0, latent_dim, width)
        self.ema = EMA(self.network, ema_half_life) if ema_half_life > 0 else None
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.val_loss = MeanMetric()
        self.window = WindowedMetrics("images")

    @property
    def averaged(self) -> VAENetwork:
        """The network with averaged weights if there is an average, else the one that is trained."""
        return cast(VAENetwork, self.network if self.ema is None else self.ema.network)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws samples: the decoder's mean at z ~ N(0, temperature^2).

        Args:
            n: number of samples.
            labels: classes for a conditional model, int64 (n,); drawn uniformly by default.
            generator: random number generator; the same state gives the same samples on every device.
            seeds: seed of each sample, int64 (n,), instead of a generator.
            temperature: standard deviation of the latent vectors; below 1 for cleaner and less varied samples.

        Returns:
            (n, *input_shape), images in [-1, 1].

        Raises:
            UserError: temperature is below 0.
        """
        if temperature < 0:
            raise UserError(f"temperature is {temperature}; it must be at least 0")
        with eval_mode(self):
            seeds = sample_seeds(n, generator) if seeds is None else seeds
            z = temperature * self.latents(n, seeds)
            labels = self.draw_labels(seeds) if labels is None else labels.to(self.device)
            return self.averaged.decode(z, labels).float()

    def latents(self, n: int, seeds: Tensor | None = None) -> Tensor:
        """Standard normal noise (n, latent_dim) on the model's device, by a seed per sample if they are given."""
        if seeds is not None:
            return SampleNoise(seeds, (self.latent_dim,), self.device)()
        return torch.randn(n, self.latent_dim, device=self.device)

    exports = ("decoder",)

    def export_decoder(self) -> Export:
        """Samples from latent vectors: the decoder's mean."""
        labels = label_inputs(self.num_classes - 1 if self.conditional else None)
        inputs = {"z": Input("standard normal latent vectors", (self.latent_dim,)), **labels}
        part = Part(self.averaged, lambda z, labels=None: self.averaged.decode(z, labels).float())
        return Export(part, inputs, "samples", self.input_shape)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = self.unpack(batch)
        loss = -self.network(x, labels, self.latents(len(x))).mean()
        self.count_images(len(x))
        self.window.update(len(x), loss=loss)
        self.window.log(self)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)  # val/fd
        x, labels = self.unpack(batch)
        seeds = sample_seeds(len(x), torch.Generator().manual_seed(batch_idx))  # the same in every validation
        noise = self.latents(len(x), seeds)
        self.val_loss.update(-self.averaged(x, labels, noise))
        self.log("val/loss", self.val_loss, prog_bar=True)
