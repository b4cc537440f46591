"""Tests of the plugin: the contracts of lightning-zoo, and the bound against its closed form."""

import math

import torch
from torch import nn

from vae_plugin import VAE
from vae_plugin.network import VAENetwork
from zoo.testing import check_model


def test_an_unconditional_model_keeps_the_contracts():
    check_model(VAE, latent_dim=4, width=16)


def test_a_conditional_model_keeps_the_contracts():
    check_model(VAE, conditional=True, latent_dim=4, width=16)


def test_the_bound_is_the_log_likelihood_where_the_encoder_is_exact():
    """A linear decoder is probabilistic PCA, whose posterior and likelihood are known.

    With x = W z + b + noise of variance s^2 and orthogonal columns of W, the posterior is Gaussian with the precision
    M / s^2, where M = W'W + s^2 is diagonal, and the mean M^-1 W' (x - b) (Tipping and Bishop 1999, eqs. 6 and 7).
    """
    torch.manual_seed(0)
    d, k, variance = 6, 2, 0.3
    w = torch.linalg.qr(torch.randn(d, k)).Q * torch.tensor([2.0, 0.7])
    b = torch.randn(d)
    m = w.square().sum(0) + variance
    posterior_mean = w.T / m[:, None]

    network = VAENetwork((d,), num_classes=0, latent_dim=k, width=1)
    network.decoder = linear(w, b)
    network.encoder = linear(
        torch.cat([posterior_mean, torch.zeros(k, d)]),
        torch.cat([-posterior_mean @ b, (variance / m).log()]),
    )
    network.log_var.data.fill_(math.log(variance))

    x = torch.randn(4, d)
    exact = torch.distributions.MultivariateNormal(b, w @ w.T + variance * torch.eye(d)).log_prob(x)
    noise = torch.randn(4 * 20_000, k)
    with torch.no_grad():
        bound = network(x.repeat_interleave(20_000, 0), None, noise).view(4, -1).mean(1)
        network.encoder.bias[k:] += 1
        worse = network(x.repeat_interleave(20_000, 0), None, noise).view(4, -1).mean(1)
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.03)
    assert (worse < exact - 0.3).all(), "with another posterior it is below"


def test_temperature_is_the_spread_of_the_latent_vectors():
    model = VAE((2,), latent_dim=2)
    model.network.decoder = nn.Identity()
    model.ema = None
    samples = model.sample(20_000, generator=torch.Generator().manual_seed(0), temperature=0.5)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, 0.5]), rtol=0, atol=0.01)


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return layer
