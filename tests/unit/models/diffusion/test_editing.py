"""Editing with exact denoisers, whose conditional distributions are known in closed form."""

import pytest
import torch

from zoo.errors import UserError
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.editing import inpaint, interpolate, invert, super_resolve, vary
from zoo.models.diffusion.solvers import karras_sigmas, solve

SIGMAS = karras_sigmas(40, 0.01, 20.0)


def noise_for(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian(covariance: torch.Tensor):
    """The denoiser of a normal distribution with mean zero: C (C + sigma^2)^-1 x."""

    def denoise(x, sigma):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
        return (x.flatten(1) @ gain.T).view_as(x)

    return denoise


CORRELATED = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def inpainted(resamples: int) -> torch.Tensor:
    """The second coordinate, given that the first one is 1.5."""
    n = 4000
    noise = noise_for((n, 2))
    known = torch.tensor([[1.5, 0.0]], dtype=torch.float64).expand(n, -1)
    mask = torch.tensor([False, True])
    x = inpaint(gaussian(CORRELATED), 20 * noise(), known, mask, SIGMAS, noise, resamples)
    assert (x[:, 0] == 1.5).all(), "the known coordinate is exact"
    return x[:, 1]


def test_inpainting_draws_from_the_conditional_distribution():
    x = inpainted(resamples=10)
    assert x.mean().item() == pytest.approx(0.8 * 1.5, abs=0.08)
    assert x.std().item() == pytest.approx((1 - 0.8**2) ** 0.5, abs=0.06)


def test_inpainting_without_resampling_is_biased():
    assert abs(inpainted(resamples=1).mean().item() - 0.8 * 1.5) > 0.15


def test_inpainting_repeats_every_step_but_the_last():
    levels = []
    noise = noise_for((3, 2))
    denoise = gaussian(CORRELATED)
    mask = torch.tensor([False, True])
    inpaint(lambda x, s: levels.append(s) or denoise(x, s), 20 * noise(), torch.zeros(3, 2), mask, SIGMAS, noise, 4)
    assert len(levels) == 39 * 4 + 1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_a_variation_is_correlated_with_the_image_as_by_the_probability_flow(sigma):
    """For a standard normal, the probability flow scales x + sigma noise by 1 / sqrt(1 + sigma^2)."""
    n = 20_000
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(1)).double()
    varied = vary(gaussian(torch.eye(1, dtype=torch.float64)), x, karras_sigmas(40, 0.002, sigma), noise_for((n, 1)))
    assert varied.std().item() == pytest.approx(1, abs=0.02)
    correlation = (x * varied).mean().item() / (x.std() * varied.std()).item()
    assert correlation == pytest.approx((1 + sigma**2) ** -0.5, abs=0.02)


def test_a_variation_keeps_the_mode_at_low_strength_and_not_at_full_strength():
    data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    denoise = IdealDenoiser(data).denoise
    x = data[:1].expand(2000, -1)
    shares = []
    for sigma in (0.2, 80.0):
        varied = vary(denoise, x, karras_sigmas(40, 0.002, sigma), noise_for((2000, 2)))
        shares.append((varied[:, 0] < 0).double().mean().item())
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx(0.5, abs=0.04)


def test_an_inverted_image_is_recovered():
    data = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    denoise = IdealDenoiser(data, std=0.5).denoise
    x = data.repeat(40, 1, 1) + 0.5 * torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    levels = karras_sigmas(60, 0.002, 20.0)
    noisy = invert(denoise, x, levels)
    assert noisy.std().item() == pytest.approx(20, rel=0.15)
    back = solve(denoise, noisy, levels[:-1], "deis").x
    assert (back - x).square().mean().sqrt().item() < 0.01


def test_an_interpolation_starts_and_ends_at_its_images_and_keeps_their_norm():
    mean = torch.linspace(-2, 3, 64, dtype=torch.float64)
    denoise = IdealDenoiser(mean.unsqueeze(0), std=0.7).denoise
    first, second = mean + 0.7 * torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0)).double()
    path = interpolate(denoise, first, second, 5, karras_sigmas(60, 0.002, 40.0), center=mean)
    assert path.shape == (5, 50, 64)
    torch.testing.assert_close(path[0], first, rtol=0, atol=0.02)
    torch.testing.assert_close(path[-1], second, rtol=0, atol=0.02)
    # For a Gaussian the flow only scales, so the path is a great circle and the norm is constant.
    norms = (path - mean).norm(dim=2)
    assert (norms[2] / norms[0]).mean().item() == pytest.approx(1, abs=0.05)
    straight = ((first + second) / 2 - mean).norm(dim=1)
    assert (straight / norms[0]).mean().item() == pytest.approx(0.5**0.5, abs=0.05), "on a straight line the norm falls"


def test_super_resolution_averages_to_the_small_image_and_has_the_conditional_mean():
    """For smooth images with a normal distribution, whose mean given the averages of squares is known."""
    n, place = 1000, torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    covariance = (-torch.cdist(place, place).square() / 8).exp() + 0.01 * torch.eye(16, dtype=torch.float64)
    shrink = torch.nn.functional.avg_pool2d(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4), 2).view(16, 4).T
    small = torch.tensor([[[0.9, -0.3], [0.4, -0.8]]], dtype=torch.float64)
    noise = noise_for((n, 1, 4, 4))
    x = super_resolve(gaussian(covariance), 20 * noise(), small.expand(n, 1, 2, 2), SIGMAS, noise)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(x, 2), small.expand(n, 1, 2, 2), rtol=0, atol=1e-9)
    across = covariance @ shrink.T
    expected = across @ torch.linalg.solve(shrink @ across, small.flatten())
    found = x.mean(0).flatten()
    assert ((found - expected).norm() / expected.norm()).item() < 0.1
    nearest = small.repeat_interleave(2, -1).repeat_interleave(2, -2).flatten()
    assert ((found - expected).norm() / (nearest - expected).norm()).item() < 0.3, "closer than repeated pixels"


def test_sides_that_are_no_multiples_are_refused():
    noise = noise_for((1, 1, 4, 4))
    with pytest.raises(UserError, match=r"images of \(3, 2\) pixels cannot be enlarged to \(4, 4\) evenly"):
        super_resolve(IdealDenoiser(torch.zeros(1, 1, 4, 4)).denoise, noise(), torch.zeros(1, 1, 3, 2), SIGMAS, noise)
