"""The GAN's equilibrium: the optimal discriminator, the value of the game, and whether training reaches it.

The optimal discriminator is D* = p / (p + p_G), and V(D*, G) = -log 4 + 2 JS(p, p_G) (Goodfellow et al. 2014, arXiv
1406.2661, section 4.1). Training does not follow V(D*, G): in the Dirac-GAN, a point mass at theta against data at 0
with D = sigmoid(psi x), gradient descent of both players circles, and R1 makes it converge (Mescheder et al. 2018,
arXiv 1801.04406, sections 2 and 4).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from zoo.datamodules.points import MIXTURES, GaussianMixture
from zoo.errors import check_at_least, check_at_most, check_seed
from zoo.models.gan.losses import ADVERSARIAL_LOSSES, zero_centered_gradient_penalty
from zoo.models.gan.network import MLPDiscriminator
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage

DATA = MIXTURES["gaussians"]
#: Distribution of a generator that has not learned yet.
GENERATED = GaussianMixture(torch.tensor([[0.8]]), torch.ones(1), std=0.9)
GRID = torch.linspace(-12, 12, 4801, dtype=torch.double).unsqueeze(1)
LOG_4 = math.log(4)

Updates = Literal["simultaneous", "alternating"]


def integral(values: Tensor) -> float:
    """Integral over the grid, of values (M,) on it."""
    return torch.trapezoid(values, GRID[:, 0]).item()


def value(logits: Tensor, data: GaussianMixture, generated: GaussianMixture) -> float:
    """V(D, G) = E log D + E log(1 - D) by quadrature, for logits (M,) of D on the grid."""
    p, q = data.log_prob(GRID).exp(), generated.log_prob(GRID).exp()
    return integral(-p * softplus(-logits) - q * softplus(logits))


def optimal_logits(data: GaussianMixture, generated: GaussianMixture, x: Tensor = GRID) -> Tensor:
    """Logits (M,) of D* = p / (p + p_G) at x (M, 1): ln p - ln p_G."""
    return data.log_prob(x) - generated.log_prob(x)


def jensen_shannon(data: GaussianMixture, generated: GaussianMixture) -> float:
    """Jensen-Shannon divergence in nats by quadrature: mean of KL(p || m) and KL(p_G || m), m = (p + p_G) / 2."""
    p, q = data.log_prob(GRID), generated.log_prob(GRID)
    middle = torch.logaddexp(p, q) - math.log(2)
    return integral(p.exp() * (p - middle) + q.exp() * (q - middle)) / 2


def train_discriminator(
    steps: int, batch_size: int = 512, lr: float = 3e-3, seed: int = 0
) -> tuple[MLPDiscriminator, list[tuple[int, float]]]:
    """Trains a discriminator of `DATA` against `GENERATED`, which stays as it is.

    Returns:
        The discriminator, and (step, V(D, G)) about fifty times during the training.
    """
    torch.manual_seed(seed)
    model = MLPDiscriminator((1,), width=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss, values = ADVERSARIAL_LOSSES["minimax"].discriminator, []
    for step in range(steps + 1):
        if step % max(1, steps // 50) == 0:
            values.append((step, value(discriminate(model, GRID), DATA, GENERATED)))
        x, fake = DATA.sample(batch_size)[0], GENERATED.sample(batch_size)[0]
        optimizer.zero_grad()
        loss(model(x), model(fake)).backward()
        optimizer.step()
        scheduler.step()
    return model, values


@torch.no_grad()
def discriminate(model: MLPDiscriminator, x: Tensor) -> Tensor:
    """Logits (M,) of the discriminator at x (M, 1), float64."""
    return model(x.float()).double()


def shifted(offset: float) -> GaussianMixture:
    """N(offset, 1): data for 0, else what a generator draws that only has to learn its mean."""
    return GaussianMixture(torch.tensor([[offset]]), torch.ones(1), std=1.0)


def dirac_gan(
    steps: int,
    lr: float = 0.2,
    gamma: float = 0.0,
    updates: Updates = "simultaneous",
    start: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Gradient descent of the Dirac-GAN, points (theta, psi), (steps + 1, 2).

    Args:
        steps: steps of both players.
        lr: learning rate.
        gamma: weight of R1 in the discriminator's loss, gamma / 2 E ||grad D||^2 on data.
        updates: both players from the same point, or the discriminator first and the generator from where that leads.
        start: first theta and psi.
    """
    game = ADVERSARIAL_LOSSES["minimax"]
    theta, psi = (torch.tensor([number], dtype=torch.double, requires_grad=True) for number in start)
    real = torch.zeros(1, 1, dtype=torch.double, requires_grad=True)
    path = [torch.cat([theta, psi]).detach()]
    for _ in range(steps):
        real_logits = psi * real[:, 0]
        loss = game.discriminator(real_logits, psi * theta)
        loss = loss + gamma / 2 * zero_centered_gradient_penalty(real_logits, real)
        (of_psi,) = torch.autograd.grad(loss, psi)
        (of_theta,) = torch.autograd.grad(game.generator(psi * real[:, 0], psi * theta), theta)
        with torch.no_grad():
            psi -= lr * of_psi
        if updates == "alternating":
            (of_theta,) = torch.autograd.grad(game.generator(psi * real[:, 0], psi * theta), theta)
        with torch.no_grad():
            theta -= lr * of_theta
        path.append(torch.cat([theta, psi]).detach())
    return torch.stack(path)


def convergence_rate(gamma: float, lr: float = 0.0) -> float:
    """Rate of convergence of the Dirac-GAN with R1 near the equilibrium, per unit of time; negative if it diverges.

    The eigenvalues of the flow are (-gamma +- sqrt(gamma^2 - 1)) / 2.

    Args:
        gamma: weight of R1.
        lr: learning rate of simultaneous steps, the time of a step; 0 for the limit of continuous time.
    """
    root = cmath.sqrt(gamma**2 - 1)
    eigenvalues = (-gamma + root) / 2, (-gamma - root) / 2
    if lr == 0:
        return -max(eigenvalue.real for eigenvalue in eigenvalues)
    return -math.log(max(abs(1 + lr * eigenvalue) for eigenvalue in eigenvalues)) / lr


def measured_rate(gamma: float, lr: float = 0.05, time: float = 40.0) -> float:
    """Rate at which the distance from the equilibrium decays, fitted to the second half of a run from close to it."""
    steps = round(time / lr)
    distance = dirac_gan(steps, lr, gamma, start=(1e-2, 1e-2)).norm(dim=1).log()[steps // 2 :]
    moments = lr * torch.arange(len(distance), dtype=torch.double)
    moments = moments - moments.mean()
    return -((moments * distance).sum() / moments.square().sum()).item()


def draw(
    steps: int = 2000, game_steps: int = 300, lr: float = 0.2, gamma: float = 0.3, offset: float = 2.0, seed: int = 0
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        steps: training steps of the discriminator.
        game_steps: steps of both players in the Dirac-GAN.
        lr: learning rate of both players in the Dirac-GAN.
        gamma: weight of R1 in the Dirac-GAN.
        offset: mean of the samples for which the frozen discriminator is optimal.
        seed: random seed of the discriminator.
    """
    check_at_least(1, steps=steps, game_steps=game_steps)
    check_at_least(0, gamma=gamma)
    check_at_least(0.001, lr=lr)
    check_at_least(-8, offset=offset)
    check_at_most(0.5, lr=lr)  # beyond lr * gamma = 2 the penalty itself diverges
    check_at_most(4, gamma=gamma)
    check_at_most(8, offset=offset)
    check_seed(seed=seed)
    figure, axes = new_figure(6, size=3.4, columns=2)
    model, values = train_discriminator(steps, seed=seed)
    _plot_discriminator(axes[0], model)
    _plot_value(axes[1], values)
    _plot_theorem(axes[2], offset)
    _plot_game(axes[3], game_steps, lr, gamma)
    _plot_distance(axes[4], game_steps, lr, gamma)
    _plot_rates(axes[5])
    return render_figure(figure)


def _plot_discriminator(ax: Any, model: MLPDiscriminator) -> None:
    x = torch.linspace(-4, 4, 400, dtype=torch.double).unsqueeze(1)
    for mixture, color, name in ((DATA, PALETTE[0], "p, data"), (GENERATED, PALETTE[4], "p_G, generated")):
        ax.fill_between(x[:, 0], mixture.log_prob(x).exp(), color=color, alpha=0.35, label=name)
    ax.plot(x[:, 0], discriminate(model, x).sigmoid(), color=PALETTE[1], linewidth=2, label="D, trained")
    ax.plot(x[:, 0], optimal_logits(DATA, GENERATED, x).sigmoid(), "k--", linewidth=1, label="D* = p / (p + p_G)")
    ax.set_title("the optimal discriminator", fontsize="medium")
    ax.set(xlabel="x", ylim=(0, 1.05), xlim=(-4, 4))
    ax.legend(fontsize="x-small", loc="upper right")


def _plot_value(ax: Any, values: Sequence[tuple[int, float]]) -> None:
    best = -LOG_4 + 2 * jensen_shannon(DATA, GENERATED)
    ax.plot(*zip(*values, strict=True), color=PALETTE[1], label="V(D, G)")
    ax.axhline(best, color="black", linestyle="--", label=f"-log 4 + 2 JS = {best:.3f}")
    ax.axhline(-LOG_4, color="0.5", linestyle=":", label=f"-log 4 = {-LOG_4:.3f}")
    ax.set_title("value during the training of D", fontsize="medium")
    ax.set(xlabel="step of the discriminator")
    ax.legend(fontsize="x-small")


def _plot_theorem(ax: Any, offset: float) -> None:
    offsets = [k / 10 for k in range(-40, 41)]
    frozen = optimal_logits(shifted(0.0), shifted(offset))
    best = [value(optimal_logits(shifted(0.0), shifted(k)), shifted(0.0), shifted(k)) for k in offsets]
    fixed = [value(frozen, shifted(0.0), shifted(k)) for k in offsets]
    ax.plot(offsets, best, color=PALETTE[0], label="V(D*, G): D optimal at each point")
    ax.plot(offsets, fixed, "--", color=PALETTE[1], label=f"V(D, G): D optimal at {offset:g} only")
    ax.plot([offset], [value(frozen, shifted(0.0), shifted(offset))], "o", color="black")
    ax.axvline(0, color="0.6", linewidth=1)
    ax.set_title("what the generator minimizes; data at 0", fontsize="medium")
    ax.set(xlabel="mean of the samples", ylabel="value", ylim=(-3, 0.1))
    ax.legend(fontsize="x-small", loc="lower right")


#: Label, color, and options of `dirac_gan` but for gamma, of what is drawn of the Dirac-GAN.
GAMES: tuple[tuple[str, str, Updates, bool], ...] = (
    ("simultaneous", PALETTE[1], "simultaneous", False),
    ("alternating", PALETTE[4], "alternating", False),
    ("simultaneous, R1", PALETTE[0], "simultaneous", True),
)


def _plot_game(ax: Any, steps: int, lr: float, gamma: float) -> None:
    for name, color, updates, penalized in GAMES:
        path = dirac_gan(steps, lr, gamma if penalized else 0.0, updates)
        ax.plot(*path.T, color=color, linewidth=1, label=name)
    ax.plot([0], [0], "k*", markersize=9)
    ax.plot([1], [1], "ko", markersize=5)
    ax.set_title("Dirac-GAN: from the dot to the star?", fontsize="medium")
    ax.set(xlabel="theta, position of the samples", ylabel="psi, slope of D")
    ax.legend(fontsize="x-small", loc="upper right")


def _plot_distance(ax: Any, steps: int, lr: float, gamma: float) -> None:
    for name, color, updates, penalized in GAMES:
        ax.plot(dirac_gan(steps, lr, gamma if penalized else 0.0, updates).norm(dim=1), color=color, label=name)
    law = math.sqrt(2) * torch.exp(-convergence_rate(gamma, lr) * lr * torch.arange(steps + 1))
    ax.plot(law, "k--", linewidth=1, label="rate in theory")
    ax.set(yscale="log", xlabel="step", ylabel="distance from the equilibrium")
    ax.set_title(f"learning rate {lr:g}, gamma = {gamma:g}", fontsize="medium")
    ax.legend(fontsize="x-small", loc="lower left")


def _plot_rates(ax: Any) -> None:
    gammas = torch.linspace(0, 3, 121).tolist()
    ax.plot(gammas, [convergence_rate(gamma, 0.05) for gamma in gammas], "k", linewidth=1, label="in theory, lr 0.05")
    some = [0.0, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0]
    ax.plot(some, [measured_rate(gamma) for gamma in some], "o", color=PALETTE[0], label="measured")
    ax.axvline(1, color="0.6", linewidth=1)
    ax.set_title("rate of convergence; R1 can be too strong", fontsize="medium")
    ax.set(xlabel="gamma", ylabel="rate")
    ax.legend(fontsize="x-small")
