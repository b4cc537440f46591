"""Brownian motion, forwards and in reverse, against closed forms."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from tests.unit.models.diffusion.test_denoiser import MIXTURE, mixture_denoiser, seeded
from zoo.errors import UserError
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process

FREE, SPRING = Process(diffusivity=0.7, temperature=2.5), Process(diffusivity=0.7, temperature=2.5, stiffness=1.9)


def exact_score(process: Process):
    """grad ln p_t of the mixture under the process: a mixture with scaled centers and a larger variance."""

    def score(x, t):
        log_weights, centers = MIXTURE.weights.to(x).log(), MIXTURE.centers.to(x).flatten()
        variance = (process.scale(t) * MIXTURE.std) ** 2 + process.std(t) ** 2
        offset = process.scale(t) * centers - x  # (N, number of centers)
        posterior = (log_weights - offset.square() / (2 * variance)).softmax(1)
        return (posterior * offset).sum(1, keepdim=True) / variance

    return score


# The forward process


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_time_and_noise_level_are_inverses(process):
    for t in (1e-6, 0.03, 1.0, 4.0):
        assert process.time(process.sigma(t)) == pytest.approx(t)


def test_the_variance_of_a_free_particle_is_2dt():
    assert FREE.std(3.0) ** 2 == pytest.approx(2 * 0.7 * 3.0)
    assert FREE.sigma(3.0) == FREE.std(3.0)


def test_a_particle_on_a_spring_relaxes_to_the_boltzmann_distribution():
    assert SPRING.scale(100.0) == pytest.approx(0, abs=1e-12)
    assert SPRING.std(100.0) ** 2 == pytest.approx(2.5 / 1.9)
    for t in (0.01, 0.4, 2.0):
        assert SPRING.scale(t) ** 2 + SPRING.std(t) ** 2 * 1.9 / 2.5 == pytest.approx(1)


def test_the_closed_form_of_the_spring_solves_its_equation_of_motion():
    steps, t, generator = 200, 0.8, seeded(0)
    x = torch.full((50_000,), 2.0, dtype=torch.float64)
    for _ in range(steps):
        velocity = SPRING.drift(SPRING.external_force(x))
        half = torch.randn(len(x) // 2, generator=generator, dtype=x.dtype)
        noise = torch.cat([half, -half])  # antithetic, so that the mean has no sampling error
        x = x + velocity * t / steps + math.sqrt(2 * SPRING.diffusivity * t / steps) * noise
    assert x.mean().item() == pytest.approx(SPRING.scale(t) * 2.0, abs=0.01)
    assert x.std().item() == pytest.approx(SPRING.std(t), rel=0.01)


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_score_and_denoiser_are_inverses(process):
    x, denoised = torch.randn(2, 9, generator=seeded(0)).double()
    torch.testing.assert_close(process.denoised(x, process.score(x, denoised, 0.6), 0.6), denoised)


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_the_score_follows_from_the_denoiser_at_the_noise_to_signal_ratio(process):
    x = torch.linspace(-4, 4, 50, dtype=torch.float64).unsqueeze(1)
    for t in (0.05, 0.6, 2.0):
        denoised = mixture_denoiser().denoise(x / process.scale(t), process.sigma(t))
        torch.testing.assert_close(process.score(x, denoised, t), exact_score(process)(x, t))


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_the_reverse_force_reverses_the_flux(process):
    x, score, density = torch.randn(3, 50, generator=seeded(0)).double()
    forwards = process.flux(density, process.external_force(x), score)
    backwards = process.flux(density, process.reverse_force(x, score), score)
    torch.testing.assert_close(backwards, -forwards)


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_flux_and_density_satisfy_the_continuity_equation(process):
    """Continuity, dp/dt = -dj/dx, by finite differences on the known mixture."""

    def density(x, t):
        return (mixture_denoiser().log_prob(x / process.scale(t), process.sigma(t)).exp() / process.scale(t)).unsqueeze(
            1
        )

    def flux(x):
        return process.flux(density(x, t), process.external_force(x), exact_score(process)(x, t))

    x, t, h = torch.linspace(-3, 3, 41).double().unsqueeze(1), 0.3, 1e-4
    change = (density(x, t + h) - density(x, t - h)) / (2 * h)
    divergence = (flux(x + h) - flux(x - h)) / (2 * h)
    torch.testing.assert_close(change, -divergence, rtol=0, atol=1e-6)


# The reverse process


N = 20_000


def there_and_back(process: Process, noise: float = 1.0, factor: float = 1.0, sigma: float = 6.0) -> float:
    """Wasserstein-1 distance of the mixture from itself after diffusion to `sigma` and the reverse process."""
    x0, _ = MIXTURE.sample(N, seeded(0))
    end, start = process.time(sigma), process.time(0.01)
    x = process.diffuse(x0, end, seeded(1))
    score = exact_score(process)
    # Equal steps of the cube root of time, since the data forms in the last fraction of it.
    times = [(end ** (1 / 3) + i / 100 * (start ** (1 / 3) - end ** (1 / 3))) ** 3 for i in range(101)]
    x = process.reverse(x, lambda x, t: factor * score(x, t), times, noise, seeded(2))
    other, _ = MIXTURE.sample(N, seeded(3))
    return wasserstein1(x, other).item()


@cache
def floor() -> float:
    """Distance between two samples of the mixture."""
    draws = [MIXTURE.sample(N, seeded(seed))[0] for seed in range(3, 9)]
    return sum(wasserstein1(a, b).item() for a, b in pairwise(draws)) / 5


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
@pytest.mark.parametrize("noise", [0.0, 1.0, 1.5])
def test_the_reverse_process_recovers_the_initial_distribution(process, noise):
    assert there_and_back(process, noise) < 3 * floor()


@pytest.mark.parametrize(
    ("noise", "factor"),
    [
        (1.0, 0.5),  # D for 2D
        (1.0, 2.0),  # 4D
        (0.0, 2.0),  # 2D without the noise
        (1.0, 0.25),
    ],
    ids=["D for 2D", "4D for 2D", "no noise with the full force", "a quarter"],
)
def test_the_reverse_process_with_a_wrong_factor_does_not(noise, factor):
    assert there_and_back(FREE, noise, factor) > 10 * floor()


def test_diffusivity_rescales_time_and_temperature_changes_nothing():
    x = 3 * torch.randn(500, 1, generator=seeded(0)).double()
    sigmas = torch.linspace(3, 0.1, 60).tolist()
    ends = []
    for process in (Process(1.0, 1.0), Process(3.7, 1.0), Process(1.0, 0.2), Process(2.0, 9.0)):
        times = [process.time(sigma) for sigma in sigmas]
        ends.append(process.reverse(x, exact_score(process), times, generator=seeded(1)))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0])


def test_the_ideal_denoiser_leads_back_to_the_training_data():
    data = torch.randn(20, 5, generator=seeded(0)).double()
    force = IdealDenoiser(data)
    process = Process()
    times = [process.time(sigma) for sigma in torch.logspace(1, -3, 200).tolist()]
    x = 10 * torch.randn(50, 5, generator=seeded(1)).double()
    x = process.reverse(x, lambda x, t: force.score(x, process.sigma(t)), times, generator=seeded(2))
    assert torch.cdist(x, data).min(1).values.max().item() < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"diffusivity": 0.0}, "diffusivity is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"stiffness": -2.0}, "stiffness is -2.0"),
    ],
)
def test_invalid_constants_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Process(**arguments)
