"""The figure of a GAN against the theoretical equilibrium."""

import pytest
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


def test_the_discriminator_of_each_class_has_its_own_curve(monkeypatch):
    monkeypatch.setattr("zoo.plotting.equilibrium.render_figure", lambda figure: figure)
    x, probability = torch.linspace(-3, 3, 50), torch.tensor([[0.5], [0.9]]).expand(2, 50)
    figure = plot_equilibrium(x, torch.zeros(50), probability, torch.randn(500))
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert {name: values[0] for name, values in curves.items()} == {
        "D(x), class 0": pytest.approx(0.5),
        "D(x), class 1": pytest.approx(0.9),
        "1/2": 0.5,
    }
