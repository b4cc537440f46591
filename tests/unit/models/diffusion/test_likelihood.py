"""The likelihood by the probability flow against closed forms."""

import math

import pytest
import torch

from tests.helpers.device import stand_in
from tests.unit.models.diffusion.small import SMALL, fit
from tests.unit.training import quiet_trainer
from zoo import Diffusion
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Points
from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.likelihood import bits_per_dimension, dequantize, log_likelihood

SIGMA_MIN, SIGMA_MAX = 0.01, 60.0


def gaussian(dimensions: int, seed: int = 0):
    """A normal distribution with a random covariance: its denoiser, its law and 20 samples."""
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
def test_the_likelihood_of_a_gaussian_is_the_closed_form(dimensions):
    denoise, law, x = gaussian(dimensions)
    found = log_likelihood(denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.0)
    torch.testing.assert_close(found.log_prob, law.log_prob(x), rtol=0, atol=2e-3 * dimensions**0.5)
    assert found.evaluations > 20


def test_the_likelihood_of_a_mixture_is_the_closed_form():
    mixture = MIXTURES["gaussians"]
    ideal = IdealDenoiser(mixture.centers.double(), weights=mixture.weights, std=mixture.std)
    x = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).unsqueeze(1)
    found = log_likelihood(ideal.denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.1, mean=-0.51)
    torch.testing.assert_close(found.log_prob, ideal.log_prob(x, SIGMA_MIN), rtol=0, atol=2e-3)


def test_the_estimated_divergence_is_unbiased():
    denoise, law, x = gaussian(20)
    exact = law.log_prob(x)

    def estimate(probes: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        options = {"probes": probes, "generator": generator, "tolerance": 1e-3}  # far below the estimate's deviation
        return log_likelihood(denoise, x, SIGMA_MIN, SIGMA_MAX, sigma_data=1.0, **options).log_prob

    estimates = [estimate(1, seed) for seed in range(30)]
    errors = torch.stack(estimates) - exact
    standard_error = errors.std(0) / 30**0.5
    assert errors.std().item() > 0.1, "the estimate has a variance"
    assert (errors.mean(0).abs() < 4.5 * standard_error).all()
    many = estimate(50, 0)
    assert (many - exact).std().item() < 0.4 * errors.std().item()


def test_the_divergence_is_exact_up_to_64_dimensions_by_default():
    gradients = []

    def denoise(x, sigma):
        x.register_hook(lambda gradient: gradients.append(gradient))
        return 0.5 * x

    for dimensions, passes in ((64, 64), (65, 1)):
        gradients.clear()
        found = log_likelihood(denoise, torch.zeros(2, dimensions), 1.0, 1.1)
        assert len(gradients) == passes * found.evaluations


def test_uniform_bytes_have_eight_bits_per_dimension():
    """Dequantized pixels of uniform bytes are uniform in [-1 - 1/255, 1 + 1/255]."""
    width = 2 + 2 / 255
    log_prob = torch.full((3,), -10 * math.log(width))
    torch.testing.assert_close(bits_per_dimension(log_prob, 10), torch.full((3,), 8.0))


def test_dequantization_noise_stays_within_one_quantization_step():
    x = torch.randint(256, (1000,)).div(127.5).sub(1)
    spread = dequantize(x, torch.Generator().manual_seed(0))
    assert (spread.add(1).mul(127.5).round() == x.double().add(1).mul(127.5).round()).all()
    offset = (spread - x).mul(127.5)
    assert offset.min().item() == pytest.approx(-0.5, abs=0.01)
    assert offset.max().item() == pytest.approx(0.5, abs=0.01)


def test_validation_logs_the_bits_per_dimension_of_images():
    model = Diffusion(**SMALL, likelihood_samples=4, likelihood_probes=1)
    fit(model, 20)
    measured = quiet_trainer(limit_val_batches=1).validate(model, Digits(), verbose=False)[0]
    assert 0 < measured["val/bits_per_dim"] < 10
    assert 0 < measured["val/bits_per_dim_error"] < 2


def test_validation_logs_the_negative_log_likelihood_of_points_close_to_the_entropy(mixture_checkpoint):
    model = load_model(mixture_checkpoint)
    model.likelihood_samples = 500
    measured = quiet_trainer(limit_val_batches=1).validate(model, Points("gaussians"), verbose=False)[0]
    mixture = MIXTURES["gaussians"]
    entropy = -mixture.log_prob(mixture.sample(20_000, torch.Generator().manual_seed(0))[0]).mean().item()
    assert measured["val/nll"] == pytest.approx(entropy, abs=0.1)


def test_a_failed_integration_is_reported():
    with pytest.raises(UserError, match="could not be integrated"):
        log_likelihood(lambda x, s: x * float("nan"), torch.zeros(1, 2), 0.1, 1.0)


def test_images_are_dequantized_by_the_same_noise_on_a_device_without_float64():
    x = torch.rand(2, 1, 4, 4)
    expected = dequantize(x, torch.Generator().manual_seed(0))
    with stand_in("mps") as place:
        found = dequantize(x.to(place), torch.Generator().manual_seed(0))
        assert found.device == place
        torch.testing.assert_close(found.cpu(), expected.float())
