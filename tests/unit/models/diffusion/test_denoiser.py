"""Denoisers: preconditioning against closed forms, and the ideal denoiser against its density."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.models.diffusion.denoiser import PARAMETRIZATIONS, Denoiser, IdealDenoiser
from zoo.models.diffusion.solvers import solve

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


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_by_label_it_is_the_mean_of_the_labels_own_images_and_searches_no_others(std, monkeypatch):
    """In closed form: sum over the x_n of the class of w_n N(x; x_n, sigma^2 + std^2) m_n, over the sum without m_n."""
    data, weights, y = torch.randn(9, 2, generator=seeded(0)).double(), torch.rand(9, generator=seeded(1)), [0, 2, 1, 2]
    labels = torch.tensor([0, 1, 2, 0, 2, 2, 1, 0, 2])
    x, sigma = torch.randn(4, 2, generator=seeded(2)).double(), torch.tensor([0.3, 1.0, 0.05, 4.0]).double()
    expected = []
    for x_i, s, label in zip(x, sigma, y, strict=True):
        own = labels == label
        density = weights[own] * (-(x_i - data[own]).square().sum(1) / (2 * (s**2 + std**2))).exp()
        means = (s**2 * data[own] + std**2 * x_i) / (s**2 + std**2)
        expected.append((density.unsqueeze(1) * means).sum(0) / density.sum())
    searched, cdist = [], torch.cdist
    monkeypatch.setattr(
        torch, "cdist", lambda a, b, **options: searched.append(len(a) * len(b)) or cdist(a, b, **options)
    )
    denoised = IdealDenoiser(data, labels, weights, std).denoise(x, sigma, torch.tensor(y))
    torch.testing.assert_close(denoised, torch.stack(expected))
    assert sum(searched) == 1 * 3 + 1 * 2 + 2 * 4
    strange = IdealDenoiser(data, labels, weights, std).denoise(x, sigma, torch.tensor([0, 7, 1, 2]))
    assert strange.isnan().any(1).tolist() == [False, True, False, False]


# A network and its preconditioning


class Recorder(nn.Module):
    """Returns zeros, and keeps its inputs."""

    def forward(self, x, c_noise, labels):
        self.inputs, self.c_noise = x, c_noise
        return torch.zeros_like(x)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_network_that_outputs_the_target_denoises_exactly(parametrization):
    torch.manual_seed(0)
    x_0, noise, sigma = torch.randn(6, 3, 2), torch.randn(6, 3, 2), torch.logspace(-2, 1.5, 6)
    denoiser = Denoiser(Recorder(), (3, 2), 0.7, parametrization)
    denoiser.mean.fill_(0.4)
    x = x_0 + sigma.view(-1, 1, 1) * noise
    scalings = denoiser.scalings(sigma, denoiser.sigma_data)
    target = denoiser.target(x_0, x, scalings)
    torch.testing.assert_close(denoiser.combine(target, x, scalings), x_0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(denoiser.loss(x_0, x, sigma), target.square().flatten(1).mean(1))
    error = (denoiser(x, sigma) - x_0).square().flatten(1).mean(1)
    torch.testing.assert_close(denoiser.weight(sigma) * error, denoiser.loss(x_0, x, sigma), rtol=1e-4, atol=1e-6)


def test_edms_inputs_and_targets_have_unit_variance_and_a_silent_network_is_exact_for_a_gaussian():
    torch.manual_seed(0)
    denoiser = Denoiser(Recorder(), (64,), 0.7)
    denoiser.mean.fill_(0.3)
    x_0 = 0.3 + 0.7 * torch.randn(4000, 64)
    for sigma in (0.02, 0.7, 30.0):
        sigmas = torch.full((len(x_0),), sigma)
        loss = denoiser.loss(x_0, x := x_0 + sigma * torch.randn_like(x_0), sigmas)
        assert denoiser.network.inputs.std().item() == pytest.approx(1, abs=0.01)
        assert loss.mean().item() == pytest.approx(1, abs=0.01), "the loss of a network whose output is zero"
        share = 0.49 / (0.49 + sigma**2)
        torch.testing.assert_close(denoiser.denoise(x, sigma), 0.3 + share * (x - 0.3))


def test_flow_matchings_input_lies_on_the_line_to_the_noise_and_its_target_is_the_velocity():
    """x_t = (1 - t) x_0 + t z, with the velocity dx_t / dt = z - x_0, for data of unit variance."""
    torch.manual_seed(0)
    denoiser = Denoiser(Recorder(), (5,), sigma_data=1.0, parametrization="flow")
    x_0, z, t = torch.randn(7, 5), torch.randn(7, 5), torch.linspace(0.1, 0.9, 7)
    sigma = t / (1 - t)
    x = x_0 + sigma.unsqueeze(1) * z
    denoiser(x, sigma)
    line = torch.lerp(x_0, z, t.unsqueeze(1))
    torch.testing.assert_close(denoiser.network.inputs, line)
    torch.testing.assert_close(denoiser.network.c_noise, t.logit() / 4)
    torch.testing.assert_close(
        denoiser.target(x_0, x, denoiser.scalings(sigma, denoiser.sigma_data)), z - x_0, rtol=1e-4, atol=1e-5
    )


class GaussianVelocity(nn.Module):
    """E[z - x_0 | x_t] for x_0 ~ N(0, 1): both are jointly normal with x_t = (1 - t) x_0 + t z."""

    def forward(self, x, c_noise, labels):
        t = (4 * c_noise).sigmoid().unsqueeze(1)
        return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x


@pytest.mark.parametrize("sigma_data", [1.0, 0.3])
def test_the_exact_velocity_of_a_gaussian_gives_its_exact_denoiser_and_a_flow_that_samples_it(sigma_data):
    torch.manual_seed(0)
    denoiser = Denoiser(GaussianVelocity(), (1,), sigma_data, "flow")
    denoiser.mean.fill_(2.0)
    x = 2 + 3 * torch.randn(50, 1)
    for sigma in (0.05, 1.0, 12.0):
        share = sigma_data**2 / (sigma_data**2 + sigma**2)
        torch.testing.assert_close(denoiser.denoise(x, sigma), 2 + share * (x - 2), rtol=1e-4, atol=1e-4)
    # Along the flow a Gaussian is scaled: x(sigma) - mean grows with sqrt(sigma_data^2 + sigma^2).
    start = 2 + (sigma_data**2 + 80.0**2) ** 0.5 * torch.tensor([[-1.0], [0.5], [2.0]])
    sigmas = [80 * (1 - k / 400) ** 7 for k in range(400)] + [0.0]
    end = solve(denoiser, start, sigmas, "heun").x.float()
    torch.testing.assert_close(end, 2 + sigma_data * torch.tensor([[-1.0], [0.5], [2.0]]), rtol=1e-3, atol=1e-3)


def test_eulers_method_in_sigma_is_eulers_method_along_the_line():
    """x_t + (t' - t) v is what the solver does in the coordinates x = x_t / (1 - t)."""
    torch.manual_seed(0)

    class Velocity(nn.Module):
        def forward(self, x, c_noise, labels):
            return x.sin() + (4 * c_noise).sigmoid().unsqueeze(1)

    denoiser = Denoiser(Velocity(), (2,), 1.0, "flow")
    times = torch.linspace(0.95, 0, 20, dtype=torch.float64).tolist()
    x = on_line = torch.randn(4, 2, dtype=torch.float64)
    for t, after in pairwise(times):
        on_line = on_line + (after - t) * (on_line.sin() + t)
    solved = solve(denoiser, x / (1 - times[0]), [t / (1 - t) for t in times], "euler").x
    torch.testing.assert_close(solved, on_line, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "deis", "dpmpp_2m"])
def test_a_solver_takes_the_ideal_denoiser_as_it_is(solver):
    ideal = IdealDenoiser(torch.tensor([[1.5]]))
    x = torch.randn(5, 1)
    end = solve(ideal, 1.5 + 10 * x, [10.0, 3.0, 1.0, 0.0], solver).x
    torch.testing.assert_close(end, torch.full((5, 1), 1.5, dtype=torch.float64))


def test_the_ideal_denoiser_is_not_rounded_where_a_run_allows_it(monkeypatch):
    precisions = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda *a: precisions.append(torch.get_float32_matmul_precision()) or softmax(*a)
    )
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        IdealDenoiser(torch.randn(5, 2)).denoise(torch.randn(3, 2), 0.1)
        assert precisions == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
