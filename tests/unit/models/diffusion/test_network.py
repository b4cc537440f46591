"""The U-Net and the residual MLP."""

import pytest
import torch

from zoo.models.diffusion.network import ResidualMLP, UNet


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 8, 8), {"widths": (32,), "blocks": 3, "num_classes": 10}),
        ((1, 28, 28), {"widths": (16, 32, 48), "blocks": 2, "attention": True}),
        ((3, 32, 32), {"widths": (32, 64), "blocks": 1, "patch_size": 4, "num_classes": 3}),
    ],
)
def test_the_unet_keeps_the_shape_and_outputs_zero_at_initialization(shape, options):
    network = UNet(shape, **options)
    x, labels = torch.randn(2, *shape), torch.zeros(2, dtype=torch.long) if "num_classes" in options else None
    out = network(x, torch.zeros(2), labels)
    assert out.shape == x.shape
    assert out.abs().max().item() == 0


def test_the_number_of_parameters_of_the_unet_is_the_sum_over_its_layers():
    w, wider, condition, classes = 32, 48, 64, 10

    def conv(a, b, k):
        return a * b * k * k + b

    def block(a, b):
        shortcut = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(condition, 2 * a, 1) + conv(a, b, 3) + conv(b, b, 3) + shortcut

    expected = conv(32, condition, 1) + conv(condition, condition, 1) + (classes + 1) * condition
    expected += conv(4, w, 3) + 2 * block(w, w) + conv(w, wider, 2) + 2 * block(wider, wider)
    expected += conv(wider, w, 2) + block(2 * w, w) + block(w, w) + 2 * w + conv(w, 4, 3)
    network = UNet((1, 8, 8), classes, (w, wider), blocks=2, patch_size=2)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_receptive_field_of_three_levels_reaches_the_border():
    network = UNet((1, 8, 8), widths=(16, 16, 16), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x, torch.zeros(1))[0, 0, 16, 16], x)
    assert (gradient[0, 0, 0] != 0).any()


def test_the_mlp_depends_on_noise_level_and_label():
    network = ResidualMLP((2,), 3, width=16, blocks=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, c, y = torch.randn(4, 2), torch.zeros(4), torch.zeros(4, dtype=torch.long)
    base = network(x, c, y)
    assert base.shape == (4, 2)
    assert not torch.allclose(base, network(x, c + 0.5, y))
    assert not torch.allclose(base, network(x, c, y + 1))
