"""The diffusion Transformer."""

import pytest
import torch

from zoo.models import DiT
from zoo.models.diffusion.dit import DiTBlock


def perturbed(**options) -> DiT:
    """A network whose zeroed layers are random, so that its output depends on everything."""
    torch.manual_seed(0)
    network = DiT((1, 8, 12), **({"layers": 2, "width": 16, "heads": 2} | options)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return network


def test_an_untrained_network_returns_zero_and_its_blocks_are_the_identity():
    torch.manual_seed(0)
    network = DiT((3, 8, 8), 4, layers=2, width=16, heads=2)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(network(x, torch.zeros(2), torch.tensor([0, 4])), torch.zeros_like(x))
    tokens, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(DiTBlock(16, 2)(tokens, condition), tokens)


def test_it_depends_on_noise_level_class_and_every_pixel():
    network = perturbed(num_classes=3)
    x, c_noise, labels = torch.randn(2, 1, 8, 12), torch.tensor([0.1, -0.4]), torch.tensor([1, 2])
    out = network(x, c_noise, labels)
    assert out.shape == x.shape
    assert not torch.allclose(out, network(x, c_noise + 0.3, labels))
    assert not torch.allclose(out, network(x, c_noise, labels - 1))
    torch.testing.assert_close(network(x, c_noise), network(x, c_noise, torch.tensor([3, 3])))
    x = x[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, c_noise[:1], labels[:1])[0, 0, 0, 0], x)
    assert (gradient != 0).all(), "attention joins all patches"


def test_patches_are_cut_and_put_back_in_place():
    """Without attention and feed-forward networks each patch is mapped on its own."""
    network = perturbed(layers=1)
    with torch.no_grad():
        network.blocks[0].gates.weight.zero_()
        network.blocks[0].gates.bias.zero_()
    x = torch.randn(1, 1, 8, 12)
    changed = x.clone()
    changed[0, 0, 2:4, 6:8] += 1
    difference = (network(changed, torch.zeros(1)) - network(x, torch.zeros(1)))[0, 0] != 0
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[2:4, 6:8] = True
    assert torch.equal(difference, expected)


def test_a_block_is_its_formula():
    """x + g1 attention(modulated x), then x + g2 feed_forward(modulated x), with a gate and a modulation for each."""
    torch.manual_seed(0)
    block = DiTBlock(16, 2)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 16)

    def modulated(norm, x):
        scale, shift = (norm.modulate.weight @ condition.T).T.add(norm.modulate.bias).chunk(2, dim=1)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    first, second = block.gates(condition).unsqueeze(1).chunk(2, dim=2)
    expected = x + first * block.attention(modulated(block.attention_norm, x))
    expected = expected + second * block.feed_forward(modulated(block.feed_forward_norm, expected))
    torch.testing.assert_close(block(x, condition), expected, rtol=1e-4, atol=1e-4)


def test_it_has_the_layers_of_the_paper():
    """Attention 4 W^2 + 4 W, feed-forward 8 W^2 + 5 W, and six vectors of scale, shift and gate, 6 W^2 + 6 W."""
    width = 16
    count = sum(p.numel() for p in DiTBlock(width, 2).parameters())
    assert count == 18 * width**2 + 15 * width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size 3 does not divide images of 8x12 pixels"),
        ({"width": 18}, "width 18 must be a multiple of 4 and of the 2 heads"),
        ({"heads": 3}, "width 16 must be a multiple of 4 and of the 3 heads"),
        ({"layers": 0}, "layers 0 above 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        perturbed(**options)
