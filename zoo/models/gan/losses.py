"""Adversarial losses, as pure functions of the discriminator's logits, and gradient penalties.

With D = sigmoid(logit) the value of the lecture's minimax game is V(D, G) = E log D(x) + E log(1 - D(G(z))). In logits,
log D = -softplus(-logit) and log(1 - D) = -softplus(logit), which never overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

LossFunction = Callable[[Tensor, Tensor], Tensor]


LogOdds = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AdversarialLoss:
    """A game between discriminator and generator, and what its logits mean.

    Attributes:
        discriminator: loss of the discriminator, a function of (real_logits, fake_logits), both (N,), to a scalar.
        generator: loss of the generator, a function of the same logits.
        log_odds: function of the same logits to the log-odds (N,) with which the discriminator takes data, and samples,
            for data; None if its output is a score without this meaning.
        needs_real: the generator's loss depends on the logits of data.
    """

    discriminator: LossFunction
    generator: LossFunction
    log_odds: LogOdds | None = None
    needs_real: bool = False

    def probability(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor] | None:
        """Probabilities (N,) with which the discriminator takes data, and samples, for data; None for scores."""
        if self.log_odds is None:
            return None
        real, fake = self.log_odds(real_logits, fake_logits)
        return real.sigmoid(), fake.sigmoid()

    def value(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor | None:
        """V(D, G) of the minimax game, a scalar, with D = `probability`; None for scores."""
        return None if self.log_odds is None else value(*self.log_odds(real_logits, fake_logits))

    def offset(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Arbitrary offset that the logits share, a scalar: their mean if only differences matter, else 0."""
        free = self.log_odds is paired
        return torch.cat([real_logits, fake_logits]).mean() if free else real_logits.new_zeros(())


def absolute(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds of a discriminator that judges each sample on its own: its logits."""
    return real_logits, fake_logits


def paired(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds that of a pair the real sample, or the generated one, is the real one.

    The logits share an arbitrary offset, which cancels in their difference.
    """
    return real_logits - fake_logits, fake_logits - real_logits


def value(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """V(D, G) = E log D(x) + E log(1 - D(G(z))), which is -log 4 if D = 1/2 everywhere.

    Args:
        real_logits: logits of D on data, (N,).
        fake_logits: logits of D on samples, (N,).
    """
    return -softplus(-real_logits).mean() - softplus(fake_logits).mean()


def cross_entropy_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-V(D, G): the discriminator maximizes the value (Goodfellow et al. 2014, eq. 1)."""
    return -value(real_logits, fake_logits)


def minimax_generator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E log(1 - D(G(z))), the generator's loss in the lecture's minimax game.

    It saturates: its gradient vanishes where D rejects samples with certainty (Goodfellow et al. 2014, section 3).
    """
    return -softplus(fake_logits).mean()


def non_saturating_generator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)): the same fixed point without saturation (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake_logits).mean()


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (Lim and Ye 2017, arXiv 1705.02894)."""
    return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()


def wasserstein_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E D(G(z)) - E D(x), for a critic that a penalty keeps Lipschitz (Arjovsky et al. 2017, arXiv 1701.07875)."""
    return fake_logits.mean() - real_logits.mean()


def critic_generator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E D(G(z)): the generator's loss for hinge and Wasserstein."""
    return -fake_logits.mean()


def relativistic_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log sigmoid(D(x) - D(G(z))): D compares pairs of a real and a fake sample.

    Jolicoeur-Martineau 2018 (arXiv 1807.00734); used in R3GAN, Huang et al. 2024 (arXiv 2501.05441), eq. 2.
    """
    return softplus(fake_logits - real_logits).mean()


def relativistic_generator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log sigmoid(D(G(z)) - D(x)): the discriminator's loss with the roles exchanged."""
    return softplus(real_logits - fake_logits).mean()


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(cross_entropy_discriminator, minimax_generator, absolute),
    "non_saturating": AdversarialLoss(cross_entropy_discriminator, non_saturating_generator, absolute),
    "hinge": AdversarialLoss(hinge_discriminator, critic_generator),
    "wasserstein": AdversarialLoss(wasserstein_discriminator, critic_generator),
    "relativistic": AdversarialLoss(relativistic_discriminator, relativistic_generator, paired, needs_real=True),
}


def zero_centered_gradient_penalty(logits: Tensor, *inputs: Tensor) -> Tensor:
    """Sum of E ||grad_x D(x)||^2 over the inputs: R1 for data, R2 for generated samples, R1 + R2 for both.

    Mescheder et al. 2018 (arXiv 1801.04406), eq. 9, without the factor gamma / 2. The graph is kept, so that the
    penalty can be differentiated. All gradients come from one backward pass, in which the logits of one input add
    nothing to the gradient of another as long as the discriminator judges every sample on its own.

    Args:
        logits: D of all samples in the inputs, one-dimensional.
        inputs: inputs of the discriminator, each (N, ...), with `requires_grad` set.
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return torch.stack([gradient.square().flatten(1).sum(1).mean() for gradient in gradients]).sum()


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """E (||grad D(u)|| - 1)^2 at u = epsilon x + (1 - epsilon) G(z), with epsilon drawn per sample.

    Gulrajani et al. 2017 (arXiv 1704.00028), eq. 3, without the factor lambda.

    Args:
        discriminator: function from (N, ...) to logits (N,).
        real: data, (N, ...).
        fake: generated samples, of the same shape.
        generator: random number generator for epsilon; torch's global one by default.
    """
    shape = (len(real), *[1] * (real.ndim - 1))
    epsilon = torch.rand(shape, dtype=real.dtype, device=real.device, generator=generator)
    u = torch.lerp(fake.detach(), real, epsilon).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(u).sum(), u, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
