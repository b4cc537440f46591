"""The physics: forwards, backwards, and the force in closed form."""

import math
from itertools import pairwise

import pytest
import torch

from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process

MIXTURE = MIXTURES["gaussians"]
FREE, SPRING = Process(diffusivity=0.7, temperature=2.5), Process(diffusivity=0.7, temperature=2.5, stiffness=1.9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_force() -> IdealDenoiser:
    return IdealDenoiser(MIXTURE.centers.double(), weights=MIXTURE.weights, std=MIXTURE.std)


def exact_score(process: Process):
    """grad ln p_t of the mixture under the process, through the denoiser of the free one."""
    force = exact_force()

    def score(x, t):
        denoised = force.denoise(x / process.scale(t), process.sigma(t))
        return process.score(x, denoised, t)

    return score


# The force in closed form


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_analytic_force_is_the_gradient_of_the_logarithm_of_the_density(std, labelled):
    data, labels = torch.randn(30, 2, 3, generator=seeded(0)).double(), torch.arange(30) % 3
    force = IdealDenoiser(data, labels, weights=torch.rand(30, generator=seeded(1)), std=std, temperature=1.7)
    x = torch.randn(8, 2, 3, generator=seeded(2)).double().requires_grad_()
    y = torch.arange(8) % 3 if labelled else None
    sigma = torch.linspace(0.2, 3, 8).double()
    (gradient,) = torch.autograd.grad(force.log_prob(x, sigma, y).sum(), x)
    torch.testing.assert_close(force.score(x, sigma, y), gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(force.force(x, sigma, y), 2 * 1.7 * gradient, rtol=0, atol=1e-10)


def test_its_density_is_that_of_the_mixture_convolved_with_the_noise():
    x = torch.linspace(-4, 4, 50).double().unsqueeze(1)
    torch.testing.assert_close(exact_force().log_prob(x, 1e-9), MIXTURE.log_prob(x), rtol=0, atol=1e-6)
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64).unsqueeze(1)
    total = exact_force().log_prob(grid, 2.0).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_it_keeps_its_digits_at_little_noise_in_many_dimensions():
    data = torch.rand(200, 784, generator=seeded(0)) * 2 - 1
    sigma = 0.005
    noise = torch.randn(200, 784, generator=seeded(1))
    denoised = IdealDenoiser(data).denoise(data + sigma * noise, sigma)
    assert denoised.isfinite().all()
    assert ((denoised - data).abs().max() / sigma).item() < 1e-3, "the noise that is left, in units of the noise"


def test_it_does_not_depend_on_how_many_samples_are_asked_for_at_once(monkeypatch):
    data, x = torch.randn(40, 3, generator=seeded(0)), torch.randn(17, 3, generator=seeded(1))
    labels, y, sigma = torch.arange(40) % 4, torch.arange(17) % 4, torch.linspace(0.1, 2, 17)
    force = IdealDenoiser(data, labels)
    whole = force.denoise(x, sigma, y)
    monkeypatch.setattr("zoo.models.diffusion.force.CHUNK", 100)
    torch.testing.assert_close(force.denoise(x, sigma, y), whole)


def test_by_label_it_leads_to_that_labels_data_alone():
    force = IdealDenoiser(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
    x = torch.tensor([[1.4], [1.4]])
    low, high = force.denoise(x, 0.05, torch.tensor([0, 1])).flatten().tolist()
    assert (low, high) == (pytest.approx(1, abs=1e-6), pytest.approx(2, abs=1e-6))
    with pytest.raises(UserError, match="built without labels"):
        IdealDenoiser(torch.zeros(2, 1)).denoise(x, 1.0, torch.tensor([0, 1]))


# The process


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_time_and_noise_level_are_each_others_inverse(process):
    for t in (1e-6, 0.03, 1.0, 4.0):
        assert process.time(process.sigma(t)) == pytest.approx(t)


def test_a_free_particle_spreads_by_2dt():
    assert FREE.std(3.0) ** 2 == pytest.approx(2 * 0.7 * 3.0)
    assert FREE.sigma(3.0) == FREE.std(3.0)


def test_a_particle_on_a_spring_ends_in_the_boltzmann_distribution_with_its_variance_preserved():
    assert SPRING.scale(100.0) == pytest.approx(0, abs=1e-12)
    assert SPRING.std(100.0) ** 2 == pytest.approx(2.5 / 1.9)
    for t in (0.01, 0.4, 2.0):
        assert SPRING.scale(t) ** 2 + SPRING.std(t) ** 2 * 1.9 / 2.5 == pytest.approx(1)


def test_the_closed_form_of_the_spring_is_where_its_equation_of_motion_leads():
    x, steps, t = torch.full((200_000,), 2.0, dtype=torch.float64), 400, 0.8
    generator = seeded(0)
    for _ in range(steps):
        velocity = SPRING.drift(SPRING.external_force(x))
        kick = math.sqrt(2 * SPRING.diffusivity * t / steps)
        x = x + velocity * t / steps + kick * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    assert x.mean().item() == pytest.approx(SPRING.scale(t) * 2.0, abs=0.01)
    assert x.std().item() == pytest.approx(SPRING.std(t), rel=0.01)


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_score_and_denoiser_are_each_others_inverse(process):
    x, denoised = torch.randn(2, 9, generator=seeded(0)).double()
    torch.testing.assert_close(process.denoised(x, process.score(x, denoised, 0.6), 0.6), denoised)


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_the_reversed_force_turns_the_flux_around(process):
    x, score, density = torch.randn(3, 50, generator=seeded(0)).double()
    forwards = process.flux(density, process.external_force(x), score)
    backwards = process.flux(density, process.reverse_force(x, score), score)
    torch.testing.assert_close(backwards, -forwards)


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
def test_the_flux_is_what_changes_the_density(process):
    """Continuity, dp/dt = -dj/dx, by finite differences on the known mixture."""

    def density(x, t):
        return (exact_force().log_prob(x / process.scale(t), process.sigma(t)).exp() / process.scale(t)).unsqueeze(1)

    def flux(x):
        return process.flux(density(x, t), process.external_force(x), exact_score(process)(x, t))

    x, t, h = torch.linspace(-3, 3, 41).double().unsqueeze(1), 0.3, 1e-4
    change = (density(x, t + h) - density(x, t - h)) / (2 * h)
    divergence = (flux(x + h) - flux(x - h)) / (2 * h)
    torch.testing.assert_close(change, -divergence, rtol=0, atol=1e-6)


# Backwards

N = 20_000


def there_and_back(process: Process, noise: float = 1.0, factor: float = 1.0, sigma: float = 6.0) -> float:
    """Wasserstein-1 distance of the mixture from itself, diffused to `sigma` and brought back."""
    x0, _ = MIXTURE.sample(N, seeded(0))
    end, start = process.time(sigma), process.time(0.01)
    x = process.diffuse(x0.double(), end, seeded(1))
    score = exact_score(process)
    # Equal steps of the cube root of the time: uniform ones would pass over all the data in the last of them.
    times = [(end ** (1 / 3) + i / 400 * (start ** (1 / 3) - end ** (1 / 3))) ** 3 for i in range(401)]
    x = process.reverse(x, lambda x, t: factor * score(x, t), times, noise, seeded(2))
    other, _ = MIXTURE.sample(N, seeded(3))
    return wasserstein1(x, other.double()).item()


def floor() -> float:
    """Between two draws from the mixture."""
    draws = [MIXTURE.sample(N, seeded(seed))[0] for seed in range(3, 9)]
    return sum(wasserstein1(a, b).item() for a, b in pairwise(draws)) / 5


@pytest.mark.parametrize("process", [FREE, SPRING], ids=["free", "spring"])
@pytest.mark.parametrize("noise", [0.0, 1.0, 1.5])
def test_the_film_backwards_gives_the_initial_distribution_back(process, noise):
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
def test_and_does_not_with_a_wrong_factor(noise, factor):
    assert there_and_back(FREE, noise, factor) > 10 * floor()


def test_the_diffusivity_sets_the_clock_and_the_temperature_nothing():
    x = 3 * torch.randn(500, 1, generator=seeded(0)).double()
    sigmas = torch.linspace(3, 0.1, 60).tolist()
    ends = []
    for process in (Process(1.0, 1.0), Process(3.7, 1.0), Process(1.0, 0.2), Process(2.0, 9.0)):
        times = [process.time(sigma) for sigma in sigmas]
        ends.append(process.reverse(x, exact_score(process), times, generator=seeded(1)))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0])


def test_the_exact_force_leads_back_to_the_training_data():
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
def test_impossible_physics_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Process(**arguments)
