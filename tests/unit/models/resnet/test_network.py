"""Residual networks against the sizes and the formulas of the paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.models.resnet.network import (
    BLOCK_TYPES,
    Block,
    CIFARResNet,
    PooledResNet,
    PooledStage,
    Shortcut,
    WhiteningConv,
)

# The networks of He et al.


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269722), (32, 464154), (44, 658586), (56, 853018), (110, 1727962)]
)
def test_it_has_the_number_of_parameters_of_the_paper(depth, parameters):
    """He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    with torch.device("meta"):
        assert sum(p.numel() for p in CIFARResNet((3, 32, 32), 10, depth).parameters()) == parameters


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize("depth", [8, 20])
def test_depth_counts_layers_with_weights_and_the_block_type_sets_norms_and_shortcuts(block_type, depth):
    network = CIFARResNet(depth=depth, block_type=block_type, widths=(2, 3, 4))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (depth - 1 if "batch_norm" in block_type else 0), "one after each convolution"
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert all((m.bias is None) == ("batch_norm" in block_type) for m in convolutions)
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    assert all(block.residual == ("residual" in block_type) for block in blocks)
    changing = sum(isinstance(m, Shortcut) for m in network.modules())
    assert changing == (2 if "residual" in block_type else 0)


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_a_block_equals_its_formula(block_type):
    torch.manual_seed(0)
    norm, residual = "batch_norm" in block_type, "residual" in block_type
    block = Block(3, 5, stride=2, norm=norm, residual=residual).eval()
    for module in (block.norm1, block.norm2) if norm else ():
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            nn.init.uniform_(tensor, 0.5, 2.0)

    def normalized(y, module):
        if not norm:
            return y
        mean, variance, scale, bias = (
            tensor.view(1, -1, 1, 1) for tensor in (module.running_mean, module.running_var, module.weight, module.bias)
        )
        return (y - mean) / (variance + 1e-5).sqrt() * scale + bias

    x = torch.randn(2, 3, 7, 8)
    y = normalized(F.conv2d(x, block.conv1.weight, block.conv1.bias, stride=2, padding=1), block.norm1).clamp_min(0)
    y = normalized(F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1), block.norm2)
    if residual:
        y[:, :3] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x.clone()), y.clamp_min(0), rtol=1e-5, atol=1e-5)


def test_the_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    x = torch.arange(2 * 2 * 3 * 4.0).view(2, 2, 3, 4)
    y = Shortcut(new_channels=3, stride=2)(x)
    assert y.shape == (2, 5, 2, 2)
    for row in range(2):
        for column in range(2):
            assert y[:, :2, row, column].equal(x[:, :, 2 * row, 2 * column])
    assert y[:, 2:].eq(0).all()
    assert not list(Shortcut(3, 2).parameters()), "option A has no parameters"


@pytest.mark.parametrize("norm", [False, True])
def test_a_block_with_zero_convolutions_is_the_identity_only_with_a_shortcut(norm):
    x = torch.rand(2, 4, 5, 5)
    for residual in (True, False):
        block = Block(4, 4, stride=1, norm=norm, residual=residual).eval()
        for convolution in (block.conv1, block.conv2):
            for parameter in convolution.parameters():
                nn.init.zeros_(parameter)
        assert block(x).equal(x if residual else torch.zeros_like(x))


def test_the_gradient_through_the_shortcut_is_one():
    block = Block(4, 4, stride=1, norm=False, residual=True)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x).sum(), x)
    assert gradient.eq(1).all(), "dy/dx = dF/dx + 1"


def test_the_network_is_stem_blocks_mean_and_linear_layer():
    torch.manual_seed(0)
    network = CIFARResNet((3, 32, 32), 7, depth=14, widths=(4, 6), block_type="residual").eval()
    x = torch.randn(2, 3, 9, 9)
    y = network.stem[1](x).clamp_min(0)
    sizes = []
    for block in network.blocks:
        y = block(y)
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(4, 9, 9)] * 3 + [(6, 5, 5)] * 3, "halved at the first block of the second stage only"
    expected = y.flatten(2).mean(2) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), expected)


def test_he_initialization_keeps_the_variance_of_gradients():
    """He et al. 2015 (arXiv 1502.01852), eq. 14: 2 / (k^2 d), with d the channels that a kernel writes."""
    torch.manual_seed(0)
    kernels = {init: kernels_of(init) for init in ("he", "default")}
    for weight in kernels["he"]:
        fan_out = weight.shape[0] * 9
        assert weight.var().item() == pytest.approx(2 / fan_out, rel=6 * (2 / weight.numel()) ** 0.5)
        assert weight.abs().max() > 3 * weight.std(), "normal, not uniform"
    for weight in kernels["default"]:
        fan_in = weight.shape[1] * 9
        assert weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=6 * (2 / weight.numel()) ** 0.5)


def kernels_of(init):
    network = CIFARResNet((3, 32, 32), 10, depth=8, widths=(32, 48, 64), init=init)
    return [m.weight.detach() for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_patch_size_folds_squares_of_pixels_into_channels():
    network = CIFARResNet((1, 8, 8), 10, depth=8, widths=(4, 6, 8), patch_size=2)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    folded = network.stem[0](x)
    assert folded.shape == (1, 4, 2, 2)
    assert folded[0, :, 0, 0].tolist() == [0, 1, 4, 5] and folded[0, :, 1, 1].tolist() == [10, 11, 14, 15]
    assert network.stem[1].weight.shape == (4, 4, 3, 3)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


# The pooled network


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize(("depth", "widths"), [(8, (4, 6, 8)), (11, (4, 6, 8)), (10, (1, 2, 3, 4))])
def test_depth_counts_the_layers_of_a_pooled_network(block_type, depth, widths):
    network = PooledResNet(depth=depth, block_type=block_type, widths=widths)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (depth - 2 if "batch_norm" in block_type else 0), "one after each convolution but the first"
    assert all((m.bias is None) == ("batch_norm" in block_type) for m in layers[1:-1])
    assert all(stage.residual == ("residual" in block_type) for stage in network.stages)


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_a_pooled_stage_equals_its_formula(block_type):
    torch.manual_seed(0)
    stage = PooledStage(3, 5, blocks=2, norm="batch_norm" in block_type, residual="residual" in block_type).eval()
    norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    for tensor in [t for m in norms for t in (m.weight, m.bias, m.running_mean, m.running_var)]:
        nn.init.uniform_(tensor, 0.5, 2.0)

    def normalized(y, norm):
        if not norms:
            return y
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return (y - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)

    x = torch.randn(2, 3, 7, 8)
    y = F.conv2d(x, stage.conv.weight, stage.conv.bias, padding=1)[:, :, :6]
    y = normalized(y.unflatten(3, (4, 2)).unflatten(2, (3, 2)).amax((3, 5)), stage.norm).clamp_min(0)
    for convolution, norm in stage.blocks:
        change = normalized(F.conv2d(y, convolution.weight, convolution.bias, padding=1), norm)
        y = (change + y if "residual" in block_type else change).clamp_min(0)
    torch.testing.assert_close(stage(x.clone()), y, rtol=1e-5, atol=1e-5)


def test_a_pooled_network_is_stem_stages_maximum_and_linear_layer():
    torch.manual_seed(0)
    network = PooledResNet((3, 32, 32), 7, depth=6, widths=(4, 6), block_type="residual").eval()
    x = torch.randn(2, 3, 9, 9)
    y = network.stem[1](x).clamp_min(0)
    sizes = [tuple(y.shape[1:])]
    for stage in network.stages:
        y = stage(y)
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(2, 8, 8), (4, 4, 4), (6, 2, 2)]
    expected = y.flatten(2).max(2).values @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), expected)


# Whitening


def patches_of(x):
    """All patches of 2x2 pixels, (patches, 4 C), each channel's pixels row by row."""
    corners = [x[:, :, i : x.shape[2] - 1 + i, j : x.shape[3] - 1 + j] for i in (0, 1) for j in (0, 1)]
    return torch.stack(corners, 2).permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_the_identity_as_second_moment(channels):
    torch.manual_seed(0)
    x = F.avg_pool2d(torch.randn(50, channels, 20, 20), 3, stride=1)  # neighbors are correlated
    convolution = WhiteningConv(channels, regularizer=0.0)
    nn.init.zeros_(convolution.bias)
    convolution.whiten(x)
    found = convolution(x).permute(0, 2, 3, 1).flatten(0, 2)
    half = found[:, : 4 * channels]
    torch.testing.assert_close(half.T @ half / len(half), torch.eye(4 * channels), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:, 4 * channels :], -half)
    moments = patches_of(x).T @ patches_of(x) / len(half)
    assert (moments - torch.eye(4 * channels) * moments.diagonal().mean()).norm() > 0.5 * moments.diagonal().norm(), (
        "the patches themselves are not white"
    )


def test_the_regularizer_bounds_directions_in_which_patches_do_not_vary():
    x = torch.randn(20, 1, 1, 1).expand(-1, 1, 6, 6)  # only the mean of a patch varies
    convolution = WhiteningConv(1, regularizer=0.01)
    convolution.whiten(x)
    torch.testing.assert_close(convolution.weight.flatten(1).norm(dim=1).max(), torch.tensor(10.0), rtol=1e-4, atol=0)


def test_filters_are_computed_once_and_never_trained():
    torch.manual_seed(0)
    network = PooledResNet((1, 8, 8), 10, whitening=True, widths=(4, 4, 4))
    network.whiten(torch.randn(20, 1, 8, 8))
    filters = network.stem[1].weight.clone()
    network.whiten(torch.randn(20, 1, 8, 8).cumsum(3))
    assert torch.equal(network.stem[1].weight, filters)
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    assert network.stem[1].weight.grad is None and network.stem[1].bias.grad.norm() > 0
    assert network.stem[1].out_channels == network.stages[0].conv.in_channels == 8


def test_patches_are_those_after_pixels_became_channels():
    x = torch.randn(20, 1, 8, 8)
    network = PooledResNet((1, 8, 8), 10, whitening=True, widths=(4, 4, 4), patch_size=2)
    network.whiten(x)
    expected = WhiteningConv(4)
    expected.whiten(F.pixel_unshuffle(x, 2))
    assert torch.equal(network.stem[1].weight, expected.weight)


def test_a_network_without_whitening_ignores_it():
    network = PooledResNet((1, 8, 8), 10, widths=(4, 4, 4))
    before = network.stem[1].weight.clone()
    network.whiten(torch.randn(20, 1, 8, 8))
    assert torch.equal(network.stem[1].weight, before) and network.stem[1].weight.requires_grad
