"""The solvers on a mixture whose denoiser is known."""

import math
from itertools import pairwise

import pytest
import torch

from tests.unit.models.diffusion.test_denoiser import MIXTURE, mixture_denoiser, seeded
from zoo.errors import UserError
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process
from zoo.models.diffusion.solvers import DETERMINISTIC, SOLVERS, ancestral, deis, euler, ipndm, karras_sigmas, solve

IDEAL = mixture_denoiser()


def noise_for(x: torch.Tensor):
    generator = seeded(1)
    return lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def flow() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of the highest level, and where the probability flow takes it, accurately: (200, 1) each."""
    x = 80 * torch.randn(200, 1, generator=seeded(0)).double()
    return x, solve(IDEAL.denoise, x, karras_sigmas(1500, 0.05)[:-1], "heun").x


@pytest.mark.parametrize(
    ("solver", "order", "tolerance"),
    [("euler", 1, 0.15), ("heun", 2, 0.2), ("dpmpp_2m", 2, 0.2), ("ipndm", 2, 0.3), ("deis", 4, 0.6)],
)
def test_the_error_falls_with_the_order_of_the_solver(solver, order, tolerance, flow):
    x, exact = flow
    errors = [
        (solve(IDEAL.denoise, x, karras_sigmas(steps, 0.05)[:-1], solver).x - exact).abs().mean().item()
        for steps in (30, 90)
    ]
    assert math.log(errors[0] / errors[1], 3) == pytest.approx(order, abs=tolerance)


def test_deis_is_the_most_accurate_at_few_evaluations():
    x = 80 * torch.randn(500, 1, generator=seeded(0)).double()
    exact = solve(IDEAL.denoise, x, karras_sigmas(1500), "heun").x

    def error(solver, steps):
        return (solve(IDEAL.denoise, x, karras_sigmas(steps), solver).x - exact).abs().mean().item()

    deis_error = error("deis", 10)
    assert all(deis_error < 0.5 * error(solver, 10) for solver in ("euler", "dpmpp_2m", "ipndm"))
    assert deis_error < 0.5 * error("heun", 6), "11 evaluations"


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_follow_the_distribution(solver):
    n = 10_000
    x = 20 * torch.randn(n, 1, generator=seeded(0)).double()
    steps = {"euler": 300, "ancestral": 300, "predictor_corrector": 150, "reverse_process": 1000}.get(solver, 40)
    samples = solve(IDEAL.denoise, x, karras_sigmas(steps, sigma_max=20.0), solver, noise_for(x)).x
    data = [MIXTURE.sample(n, seeded(seed))[0].double() for seed in range(1, 6)]
    floor = sum(wasserstein1(a, b).item() for a, b in pairwise(data)) / 4
    # The initial noise is not exactly the diffused data, of which it lacks the mean and the variance.
    assert wasserstein1(samples, data[0]).item() < 3 * floor + 0.005


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [
        ("euler", 7),
        ("heun", 13),
        ("dpmpp_2m", 7),
        ("ipndm", 7),
        ("deis", 7),
        ("ancestral", 7),
        ("predictor_corrector", 13),
        ("reverse_process", 7),
    ],
)
def test_evaluations_of_the_denoiser_are_counted(solver, evaluations):
    levels = []

    def denoise(x, sigma):
        levels.append(sigma)
        return IDEAL.denoise(x, sigma)

    x = torch.randn(3, 1)
    solution = solve(denoise, x, karras_sigmas(7), solver, noise_for(x))
    assert solution.evaluations == len(levels) == evaluations
    assert min(levels) > 0
    assert solution.states is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trajectory_keeps_all_states(solver):
    x = 80 * torch.randn(3, 1, generator=seeded(0)).double()
    plain = solve(IDEAL.denoise, x, karras_sigmas(5), solver, noise_for(x))
    kept = solve(IDEAL.denoise, x, karras_sigmas(5), solver, noise_for(x), trajectory=True)
    assert kept.states.shape == (6, 3, 1)
    assert torch.equal(kept.states[0], x)
    assert torch.equal(kept.states[-1], kept.x)
    assert torch.equal(kept.x, plain.x)


@pytest.mark.parametrize("solver", SOLVERS)
def test_states_are_float64_for_any_dtype_of_the_denoiser(solver):
    x = torch.randn(3, 1)
    solution = solve(lambda x, s: IDEAL.denoise(x, s).half(), x, karras_sigmas(4), solver, noise_for(x))
    assert solution.x.dtype == torch.float64


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_one_deterministic_step_to_zero_is_the_denoiser(solver):
    x = 5 * torch.randn(4, 1, generator=seeded(0)).double()
    torch.testing.assert_close(solve(IDEAL.denoise, x, [5.0, 0.0], solver).x, IDEAL.denoise(x, 5.0))


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_inversion_and_generation_are_inverses(solver):
    x0, _ = MIXTURE.sample(200, seeded(0))
    up = karras_sigmas(200, 0.02, 20.0)[:-1][::-1]
    noisy = solve(IDEAL.denoise, x0, up, solver).x
    back = solve(IDEAL.denoise, noisy, up[::-1], solver).x
    assert noisy.std().item() == pytest.approx(20, rel=0.2)
    assert (back - x0).abs().mean().item() < (0.03 if solver == "euler" else 0.002)


def test_ancestral_without_noise_is_eulers_method():
    x, sigmas = 80 * torch.randn(5, 1, generator=seeded(0)).double(), karras_sigmas(6)
    for a, b in zip(euler(IDEAL.denoise, x, sigmas), ancestral(IDEAL.denoise, x, sigmas, amount=0.0), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("amount", [0.5, 1.0, 2.0])
def test_ancestral_steps_are_exact_for_a_constant_denoiser(amount):
    """One step and 200 steps have the same mean and variance if E[x_0 | x] is constant."""
    x = torch.full((20_000, 1), 7.0, dtype=torch.float64)
    sigma, after, center = 3.0, 1.2, 2.0
    many = torch.linspace(sigma, after, 200).tolist()
    for sigmas in ([sigma, after], many):
        end = solve(lambda x, s: torch.full_like(x, center), x, sigmas, "ancestral", noise_for(x), amount=amount).x
        ratio = after / sigma
        assert end.mean().item() == pytest.approx(center + ratio ** (1 + amount**2) * 5.0, abs=0.04)
        assert end.std().item() == pytest.approx(after * math.sqrt(1 - ratio ** (2 * amount**2)), rel=0.02)


def test_an_ancestral_step_has_mean_and_variance_of_the_brownian_bridge():
    """Of x' given x and x_0 on the Brownian bridge: sigma'^2 (sigma^2 - sigma'^2) / sigma^2."""
    x = torch.full((50_000, 1), 7.0, dtype=torch.float64)
    (end,) = ancestral(lambda x, s: torch.zeros_like(x), x, [3.0, 1.2], noise_for(x))
    assert end.var().item() == pytest.approx(1.44 * (9 - 1.44) / 9, rel=0.02)
    assert end.mean().item() == pytest.approx(7 * 1.44 / 9, abs=0.02)


@pytest.mark.parametrize("process", [Process(), Process(diffusivity=3.7, temperature=0.2)], ids=["unit", "other"])
def test_the_reversed_film_ends_with_the_mean_and_the_variance_of_gaussian_data(process):
    """Of any length: a step of -d(sigma^2) changes the variance v to v (1 - d / (sigma^2 + s^2))^2 + d."""
    mean, s, n = 1.5, 0.7, 20_000
    gaussian = IdealDenoiser(torch.full((1, 1), mean).double(), std=s)
    for steps, error in ((20, 0.4), (600, 0.02)):
        sigmas = karras_sigmas(steps, 0.01, 10.0)
        variance = sigmas[0] ** 2 + s**2
        x = mean + math.sqrt(variance) * torch.randn(n, 1, generator=seeded(0)).double()
        for sigma, after in pairwise(sigmas[:-1]):
            d = sigma**2 - after**2
            variance = variance * (1 - d / (sigma**2 + s**2)) ** 2 + d
        end = solve(gaussian, x, sigmas[:-1], "reverse_process", noise_for(x), process=process).x
        assert end.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
        assert end.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
        assert variance == pytest.approx(s**2 + 0.01**2, rel=error), "the closed form of infinitely many steps"


def test_the_reversed_film_is_that_of_the_process_whatever_its_diffusivity():
    x, sigmas = 20 * torch.randn(50, 1, generator=seeded(0)).double(), karras_sigmas(40, 0.05, 20.0)[:-1]
    ends = []
    for process in (Process(), Process(diffusivity=3.7), Process(2.0, 9.0)):
        film = process.reverse(
            x, lambda x, t, p=process: IDEAL.score(x, p.sigma(t)), map(process.time, sigmas), draw=noise_for(x)
        )
        end = solve(IDEAL, x, sigmas, "reverse_process", noise_for(x), process=process).x
        torch.testing.assert_close(end, film)
        ends.append(end)
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


def test_deis_is_exact_for_slopes_cubic_in_its_variable():
    x = torch.zeros(1, 1, dtype=torch.float64)
    sigmas = karras_sigmas(9, 0.5, 30.0)[:-1]

    def denoise(x, sigma):  # slope (x - D) / sigma
        u = sigma ** (1 / 7)
        return x - sigma * (1 + 2 * u - 3 * u**2 + u**3)

    def integral(u):  # of the slope times d sigma = 7 u^6 du
        return 7 * (u**7 / 7 + 2 * u**8 / 8 - 3 * u**9 / 9 + u**10 / 10)

    states = [x, *deis(denoise, x, sigmas)]
    for index in range(3, len(sigmas) - 1):  # from the step on that has four slopes
        step = integral(sigmas[index + 1] ** (1 / 7)) - integral(sigmas[index] ** (1 / 7))
        assert (states[index + 1] - states[index]).item() == pytest.approx(step)


def test_ipndm_is_adams_bashforth_for_equal_steps():
    x = torch.zeros(1, 1, dtype=torch.float64)
    sigmas = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    states = list(ipndm(lambda x, sigma: x - sigma * sigma**3, x, sigmas))
    for index in range(3, 5):
        assert (states[index] - states[index - 1]).item() == pytest.approx(
            (sigmas[index + 1] ** 4 - sigmas[index] ** 4) / 4
        )


def test_karras_sigmas_are_evenly_spaced_in_their_seventh_root():
    sigmas = karras_sigmas(18)
    assert len(sigmas) == 19
    assert (sigmas[0], sigmas[-2], sigmas[-1]) == (pytest.approx(80), pytest.approx(0.002), 0.0)
    assert sigmas[1] == pytest.approx(57.586, abs=1e-3), "the published schedule of EDM"
    roots = torch.tensor(sigmas[:-1]).double() ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(17), rtol=1e-4, atol=0)
    assert karras_sigmas(1, 0.1, 5.0) == [pytest.approx(5.0), 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: karras_sigmas(0), "steps is 0"),
        (lambda: karras_sigmas(5, 2.0, 1.0), "sigma_min 2.0 and sigma_max 1.0"),
        (
            lambda: solve(IDEAL.denoise, torch.zeros(1, 1), [1.0, 0.0], "eular"),
            "solver is 'eular'; choose one of euler",
        ),
        (lambda: solve(IDEAL.denoise, torch.zeros(1, 1), [2.0, 1.0, 0.0], "ancestral"), "needs noise"),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
