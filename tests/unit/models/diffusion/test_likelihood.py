"""The likelihood by the probability flow, where it is known."""

import math

import pytest
import torch

from zoo import Diffusion
from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.likelihood import bits_per_dimension, dequantize, log_likelihood

SIGMA_MIN, SIGMA_MAX = 0.01, 60.0


def gaussian(dimensions: int, seed: int = 0):
    """A normal distribution with a random covariance: its denoiser, and a draw of it."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64) / dimensions**0.5
    covariance = root @ root.T + 0.1 * torch.eye(dimensions, dtype=torch.float64)
    identity = torch.eye(dimensions, dtype=torch.float64)

    def denoise(x, sigma):
        return x @ torch.linalg.inv(covariance + sigma**2 * identity) @ covariance

    law = torch.distributions.MultivariateNormal(torch.zeros(dimensions).double(), covariance + SIGMA_MIN**2 * identity)
    torch.manual_seed(seed)
    return denoise, law, law.sample((20,))


@pytest.mark.parametrize("dimensions", [1, 5, 20])
def test_of_a_gaussian_it_is_the_closed_form(dimensions):
    denoise, law, x = gaussian(dimensions)
    found = log_likelihood(denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.0)
    torch.testing.assert_close(found.log_prob, law.log_prob(x), rtol=0, atol=2e-3 * dimensions**0.5)
    assert found.evaluations > 20


def test_of_a_mixture_it_is_the_closed_form():
    mixture = MIXTURES["gaussians"]
    force = IdealDenoiser(mixture.centers.double(), weights=mixture.weights, std=mixture.std)
    x = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).unsqueeze(1)
    found = log_likelihood(force.denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.1, mean=-0.51)
    torch.testing.assert_close(found.log_prob, force.log_prob(x, SIGMA_MIN), rtol=0, atol=2e-3)


def test_the_estimated_divergence_is_unbiased():
    denoise, law, x = gaussian(20)
    exact = law.log_prob(x)
    estimates = [
        log_likelihood(
            denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.0, probes=1, generator=torch.Generator().manual_seed(seed)
        ).log_prob
        for seed in range(30)
    ]
    errors = torch.stack(estimates) - exact
    standard_error = errors.std(0) / 30**0.5
    assert errors.std().item() > 0.1, "it is an estimate"
    assert (errors.mean(0).abs() < 4.5 * standard_error).all()
    many = log_likelihood(
        denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.0, probes=50, generator=torch.Generator().manual_seed(0)
    ).log_prob
    assert (many - exact).std().item() < 0.4 * errors.std().item()


def test_by_default_the_divergence_is_exact_up_to_64_dimensions():
    asked = []

    def denoise(x, sigma):
        x.register_hook(lambda gradient: asked.append(gradient))
        return 0.5 * x

    for dimensions, passes in ((64, 64), (65, 1)):
        asked.clear()
        found = log_likelihood(denoise, torch.zeros(2, dimensions), 1.0, 1.1)
        assert len(asked) == passes * found.evaluations


def test_bits_of_evenly_distributed_bytes_are_eight():
    """A picture of independent even bytes, spread, is even in [-1 - 1/255, 1 + 1/255]."""
    width = 2 + 2 / 255
    log_prob = torch.full((3,), -10 * math.log(width))
    torch.testing.assert_close(bits_per_dimension(log_prob, 10), torch.full((3,), 8.0))


def test_spreading_stays_within_the_byte():
    x = torch.randint(256, (1000,)).div(127.5).sub(1)
    spread = dequantize(x, torch.Generator().manual_seed(0))
    assert (spread.add(1).mul(127.5).round() == x.double().add(1).mul(127.5).round()).all()
    offset = (spread - x).mul(127.5)
    assert offset.min().item() == pytest.approx(-0.5, abs=0.01)
    assert offset.max().item() == pytest.approx(0.5, abs=0.01)


def test_validation_gives_it_when_asked():
    from tests.unit.models.diffusion.test_module import fit, quiet
    from zoo.datamodules import Digits, Points

    model = Diffusion(input_shape=(1, 8, 8), widths=(16,), blocks=1, likelihood_samples=4, likelihood_probes=1)
    fit(model, 20)
    measured = quiet(limit_val_batches=1).validate(model, Digits(), verbose=False)[0]
    assert 0 < measured["val/bits_per_dim"] < 10
    assert 0 < measured["val/bits_per_dim_error"] < 2
    points = Diffusion(input_shape=(1,), widths=(32,), blocks=2, likelihood_samples=500)
    fit(points, 300, Points("gaussians", batch_size=256))
    measured = quiet(limit_val_batches=1).validate(points, Points("gaussians"), verbose=False)[0]
    mixture = MIXTURES["gaussians"]
    entropy = -mixture.log_prob(mixture.sample(20_000, torch.Generator().manual_seed(0))[0]).mean().item()
    assert measured["val/nll"] == pytest.approx(entropy, abs=0.1)


def test_a_likelihood_that_cannot_be_integrated_is_said():
    with pytest.raises(UserError, match="could not be integrated"):
        log_likelihood(lambda x, s: x * float("nan"), torch.zeros(1, 2), 0.1, 1.0)
