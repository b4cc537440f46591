"""Adversarial losses and gradient penalties against their formulas, and the optimal discriminator against theory."""

import math

import pytest
import torch
from torch.distributions import Normal

from zoo.models.gan.losses import (
    ADVERSARIAL_LOSSES,
    cross_entropy_discriminator,
    gradient_penalty,
    minimax_generator,
    non_saturating_generator,
    value,
    zero_centered_gradient_penalty,
)
from zoo.models.gan.network import MLPDiscriminator


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, generator=generator) * 2, torch.randn(64, generator=generator) * 2


def test_the_value_is_minus_log_4_for_a_discriminator_of_one_half():
    assert value(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(-math.log(4))


def test_losses_equal_their_formulas_in_probabilities(logits):
    real, fake = logits
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    paired = (real - fake).sigmoid()
    expected = {
        "minimax": (-d_real.log().mean() - (1 - d_fake).log().mean(), (1 - d_fake).log().mean()),
        "non_saturating": (-d_real.log().mean() - (1 - d_fake).log().mean(), -d_fake.log().mean()),
        "hinge": ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean(), -fake.mean()),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
        "relativistic": (-paired.log().mean(), -(1 - paired).log().mean()),
    }
    assert set(expected) == set(ADVERSARIAL_LOSSES)
    for name, (discriminator, generator) in expected.items():
        torch.testing.assert_close(
            ADVERSARIAL_LOSSES[name].discriminator(real, fake), discriminator, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(ADVERSARIAL_LOSSES[name].generator(real, fake), generator, rtol=1e-4, atol=1e-5)


def test_the_minimax_gradient_vanishes_for_a_confident_discriminator_unlike_the_non_saturating_one():
    gradients = {}
    for loss in (minimax_generator, non_saturating_generator):
        fake = torch.full((1,), -10.0, requires_grad=True)
        loss(torch.zeros(1), fake).backward()
        gradients[loss] = fake.grad.item()
    assert -1e-4 < gradients[minimax_generator] < 0
    assert gradients[non_saturating_generator] == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_losses_stay_finite_for_huge_logits(name):
    real, fake = torch.tensor([1e4, -1e4], requires_grad=True), torch.tensor([-1e4, 1e4], requires_grad=True)
    total = ADVERSARIAL_LOSSES[name].discriminator(real, fake) + ADVERSARIAL_LOSSES[name].generator(real, fake)
    total.backward()
    assert total.isfinite() and real.grad.isfinite().all() and fake.grad.isfinite().all()


def test_the_relativistic_loss_is_invariant_to_an_offset_of_all_logits(logits):
    real, fake = logits
    loss = ADVERSARIAL_LOSSES["relativistic"]
    torch.testing.assert_close(loss.discriminator(real + 3, fake + 3), loss.discriminator(real, fake))
    torch.testing.assert_close(loss.generator(real + 3, fake + 3), loss.generator(real, fake))


def test_the_zero_centered_penalty_of_a_quadratic_is_the_closed_form_and_differentiable():
    x = torch.randn(10, 1, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale = torch.tensor(3.0, requires_grad=True)
    penalty = zero_centered_gradient_penalty(scale * x.square().flatten(1).sum(1) / 2, x)  # gradient: scale * x
    torch.testing.assert_close(penalty, 9 * x.detach().square().flatten(1).sum(1).mean())
    penalty.backward()
    torch.testing.assert_close(scale.grad, 2 * 3 * x.detach().square().flatten(1).sum(1).mean())


def test_r1_and_r2_in_one_backward_pass_are_the_sum_of_both_in_two(monkeypatch):
    """The numbers, and the gradients of the discriminator's parameters, against a pass for each penalty."""
    torch.manual_seed(0)
    discriminator = MLPDiscriminator((1, 4, 4), width=16).double()
    real, fake = (torch.randn(8, 1, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = torch.zeros((), dtype=torch.float64)
    for x in (real, fake):
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        expected = expected + gradient.square().sum() / 8
    grad, passes = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: passes.append(1) or grad(*args, **options))
    penalty = zero_centered_gradient_penalty(discriminator(torch.cat([real, fake])), real, fake)
    assert len(passes) == 1
    torch.testing.assert_close(penalty, expected)
    weights = [p for p in discriminator.parameters() if p.ndim == 2]
    torch.testing.assert_close(grad(penalty, weights), grad(expected, weights))


def test_the_gradient_penalty_draws_one_epsilon_per_sample():
    seen = []

    def discriminator(u):
        seen.append(u.detach())
        return 2 * u.flatten(1).sum(1)

    real, fake = torch.ones(100, 1, 2, 2), torch.zeros(100, 1, 2, 2)
    penalty = gradient_penalty(discriminator, real, fake, torch.Generator().manual_seed(0))
    assert penalty.item() == pytest.approx((2 * 2 - 1) ** 2)  # gradient 2 in each of 4 pixels: norm 4
    flat = seen[0].flatten(1)
    assert (flat == flat[:, :1]).all(), "one epsilon for all pixels of a sample"
    assert len(flat[:, 0].unique()) == 100, "a different one for each sample"
    assert 0.4 < flat.mean() < 0.6


def test_a_discriminator_for_a_fixed_generator_converges_to_the_density_ratio():
    """With p_G fixed the optimum is D = p_data / (p_data + p_G) (Goodfellow et al. 2014, proposition 1)."""
    torch.manual_seed(0)
    p_data, p_generator = Normal(0.5, 0.8), Normal(-0.5, 1.0)
    discriminator = MLPDiscriminator((1,), width=32)
    # Points at evenly spaced quantiles, so that the means are accurate integrals, and the loss has no noise.
    quantiles = (torch.arange(1000) + 0.5) / 1000
    real, fake = p_data.icdf(quantiles).unsqueeze(1), p_generator.icdf(quantiles).unsqueeze(1)
    optimizer = torch.optim.LBFGS(
        discriminator.parameters(), max_iter=300, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy_discriminator(discriminator(real), discriminator(fake))
        loss.backward()
        return loss

    optimizer.step(closure)
    x = torch.linspace(-2, 2.5, 200)
    optimum = (p_data.log_prob(x) - p_generator.log_prob(x)).sigmoid()
    learned = discriminator(x.unsqueeze(1)).sigmoid().detach()
    assert (learned - optimum).abs().max() < 0.01
