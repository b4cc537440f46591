"""The ideal denoiser against its density."""

import pytest
import torch

from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.models.diffusion.denoiser import IdealDenoiser

MIXTURE = MIXTURES["gaussians"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture_denoiser() -> IdealDenoiser:
    return IdealDenoiser(MIXTURE.centers.double(), weights=MIXTURE.weights, std=MIXTURE.std)


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("labelled", [False, True])
def test_score_and_force_are_gradients_of_the_log_density(std, labelled):
    data, labels = torch.randn(30, 2, 3, generator=seeded(0)).double(), torch.arange(30) % 3
    ideal = IdealDenoiser(data, labels, weights=torch.rand(30, generator=seeded(1)), std=std, temperature=1.7)
    x = torch.randn(8, 2, 3, generator=seeded(2)).double().requires_grad_()
    y = torch.arange(8) % 3 if labelled else None
    sigma = torch.linspace(0.2, 3, 8).double()
    (gradient,) = torch.autograd.grad(ideal.log_prob(x, sigma, y).sum(), x)
    torch.testing.assert_close(ideal.score(x, sigma, y), gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(ideal.force(x, sigma, y), 2 * 1.7 * gradient, rtol=0, atol=1e-10)


def test_the_density_is_the_mixture_convolved_with_the_noise():
    x = torch.linspace(-4, 4, 50).double().unsqueeze(1)
    torch.testing.assert_close(mixture_denoiser().log_prob(x, 1e-9), MIXTURE.log_prob(x), rtol=0, atol=1e-6)
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64).unsqueeze(1)
    total = mixture_denoiser().log_prob(grid, 2.0).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_denoising_is_accurate_at_low_noise_in_many_dimensions():
    data = torch.rand(200, 784, generator=seeded(0)) * 2 - 1
    sigma = 0.005
    noise = torch.randn(200, 784, generator=seeded(1))
    denoised = IdealDenoiser(data).denoise(data + sigma * noise, sigma)
    assert denoised.isfinite().all()
    assert ((denoised - data).abs().max() / sigma).item() < 1e-3, "the remaining noise in units of sigma"


def test_chunks_give_the_result_of_the_whole_batch(monkeypatch):
    data, x = torch.randn(40, 3, generator=seeded(0)), torch.randn(17, 3, generator=seeded(1))
    labels, y, sigma = torch.arange(40) % 4, torch.arange(17) % 4, torch.linspace(0.1, 2, 17)
    ideal = IdealDenoiser(data, labels)
    whole = ideal.denoise(x, sigma, y)
    monkeypatch.setattr("zoo.models.diffusion.denoiser.CHUNK", 100)
    torch.testing.assert_close(ideal.denoise(x, sigma, y), whole)


def test_a_label_restricts_the_denoiser_to_the_data_of_its_class():
    ideal = IdealDenoiser(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
    x = torch.tensor([[1.4], [1.4]])
    low, high = ideal.denoise(x, 0.05, torch.tensor([0, 1])).flatten().tolist()
    assert (low, high) == (pytest.approx(1, abs=1e-6), pytest.approx(2, abs=1e-6))
    with pytest.raises(UserError, match="built without labels"):
        IdealDenoiser(torch.zeros(2, 1)).denoise(x, 1.0, torch.tensor([0, 1]))
