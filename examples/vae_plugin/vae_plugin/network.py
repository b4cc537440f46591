"""Encoder and decoder of a variational autoencoder, and its evidence lower bound. Plain torch.

Kingma and Welling 2013, "Auto-encoding variational Bayes" (arXiv 1312.6114).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL divergence from N(mean, exp(log_var)) to N(0, 1), in nats (appendix B).

    Args:
        mean: means, (N, D).
        log_var: logarithms of the variances, (N, D).

    Returns:
        (N,).
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of samples under N(mean, exp(log_var)), in nats.

    Args:
        x: samples, (N, ...).
        mean: means, (N, ...).
        log_var: logarithm of the variance, a scalar.

    Returns:
        (N,).
    """
    squares = (x - mean).square() / log_var.exp()
    return -0.5 * (squares + log_var + math.log(2 * math.pi)).flatten(1).sum(1)


def mlp(in_features: int, width: int, out_features: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(in_features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out_features)
    )


class VAENetwork(nn.Module):
    """Encoder q(z | x) and decoder p(x | z), both Gaussian, by MLPs.

    The variance of the decoder is one learned number, so that the bound needs no weight on its KL term (Rybkin et al.
    2021, arXiv 2006.13202).

    Args:
        input_shape: shape of a sample; images (C, H, W) are bounded by tanh, points (D,) are not.
        num_classes: number of classes, 0 for an unconditional network.
        latent_dim: length of the latent vector z.
        width: units of the hidden layers.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, latent_dim: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        pixels = math.prod(input_shape)
        self.encoder = mlp(pixels + num_classes, width, 2 * latent_dim)
        bound = nn.Tanh() if len(input_shape) == 3 else nn.Identity()
        self.decoder = nn.Sequential(
            mlp(latent_dim + num_classes, width, pixels), bound, nn.Unflatten(1, tuple(input_shape))
        )
        self.log_var = nn.Parameter(torch.tensor(0.0))

    def encode(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Samples x (N, *input_shape) to mean and log-variance of q(z | x), (N, latent_dim) each."""
        mean, log_var = self.encoder(self._with_labels(x.flatten(1), labels)).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latent vectors z (N, latent_dim) to the mean of p(x | z), (N, *input_shape)."""
        return self.decoder(self._with_labels(z, labels))

    def _with_labels(self, h: Tensor, labels: Tensor | None) -> Tensor:
        """Appends the one-hot labels (N,) to vectors (N, D)."""
        return h if labels is None else torch.cat([h, F.one_hot(labels, self.num_classes).to(h)], dim=1)

    def forward(self, x: Tensor, labels: Tensor | None, noise: Tensor) -> Tensor:
        """Evidence lower bound of log p(x), in nats (eq. 10).

        Args:
            x: samples, (N, *input_shape).
            labels: classes, int64 (N,); None for an unconditional network.
            noise: standard normal noise, (N, latent_dim).

        Returns:
            (N,).
        """
        mean, log_var = self.encode(x, labels)
        z = mean + (0.5 * log_var).exp() * noise  # the reparametrization trick
        return log_likelihood(x, self.decode(z, labels), self.log_var) - kl_divergence(mean, log_var)
