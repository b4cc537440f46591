"""The figure of a GAN against the theoretical equilibrium."""

import torch

from zoo.plotting.equilibrium import plot_equilibrium


def test_samples_and_discriminator_are_drawn_beside_each_other():
    x = torch.linspace(-3, 3, 50)
    density, samples = (-(x**2) / 2).exp() / (2 * torch.pi) ** 0.5, torch.randn(500)
    half, shifted = (
        plot_equilibrium(x, density, torch.full((50,), probability), samples).astype(int) for probability in (0.5, 0.9)
    )
    middle = half.shape[1] // 2
    changed = abs(half - shifted).sum(2) > 30
    assert changed[:, middle:].any() and not changed[:, :middle].any(), "D(x) is in the right panel only"
    red = (half[..., 0] - half[..., 2]) > 60
    assert red[:, :middle].sum() > 1000 and not red[:, middle:].any(), "the histogram is in the left panel only"
