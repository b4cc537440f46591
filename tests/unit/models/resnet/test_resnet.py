"""Residual networks: the paper's sizes, what a shortcut does, and torchvision's networks in the zoo's shell."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from zoo import ResNetClassifier
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models.resnet.network import BLOCK_TYPES, Block, PooledResNet, PooledStage, ResNet, Shortcut

TINY = {"depth": 8, "widths": (4, 6, 8)}


# The networks of He et al.


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269722), (32, 464154), (44, 658586), (56, 853018), (110, 1727962)]
)
def test_it_has_as_many_parameters_as_the_paper_says(depth, parameters):
    """He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(3, 10, depth).parameters()) == parameters


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("depth", [8, 20])
def test_depth_counts_the_layers_with_weights_and_the_kind_says_what_else_there_is(kind, depth):
    network = ResNet(depth=depth, block_type=kind, widths=(2, 3, 4))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (depth - 1 if "batch_norm" in kind else 0), "one after each convolution"
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert all((m.bias is None) == ("batch_norm" in kind) for m in convolutions)
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    assert all(block.residual == ("residual" in kind) for block in blocks)
    changing = sum(isinstance(m, Shortcut) for m in network.modules())
    assert changing == (2 if "residual" in kind else 0)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_block_is_its_formula(kind):
    torch.manual_seed(0)
    norm, residual = "batch_norm" in kind, "residual" in kind
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
def test_a_block_whose_convolutions_are_zero_is_the_identity_only_by_its_shortcut(norm):
    x = torch.rand(2, 4, 5, 5)
    for residual in (True, False):
        block = Block(4, 4, stride=1, norm=norm, residual=residual).eval()
        for convolution in (block.conv1, block.conv2):
            for parameter in convolution.parameters():
                nn.init.zeros_(parameter)
        assert block(x).equal(x if residual else torch.zeros_like(x))


def test_the_gradient_reaches_x_through_the_shortcut_unchanged():
    block = Block(4, 4, stride=1, norm=False, residual=True)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x).sum(), x)
    assert gradient.eq(1).all(), "dy/dx = dF/dx + 1"


def test_the_network_is_stem_blocks_mean_and_linear_layer_in_that_order():
    torch.manual_seed(0)
    network = ResNet(3, 7, depth=14, widths=(4, 6), block_type="residual").eval()
    x = torch.randn(2, 3, 9, 9)
    y = network.stem[1](x).clamp_min(0)
    sizes = []
    for block in network.blocks:
        y = block(y)
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(4, 9, 9)] * 3 + [(6, 5, 5)] * 3, "halved at the first block of the second stage alone"
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
    network = ResNet(3, 10, depth=8, widths=(32, 48, 64), init=init)
    return [m.weight.detach() for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_patch_folds_squares_of_pixels_into_channels():
    network = ResNet(1, 10, **TINY, patch_size=2)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    folded = network.stem[0](x)
    assert folded.shape == (1, 4, 2, 2)
    assert folded[0, :, 0, 0].tolist() == [0, 1, 4, 5] and folded[0, :, 1, 1].tolist() == [10, 11, 14, 15]
    assert network.stem[1].weight.shape == (4, 4, 3, 3)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(UserError, match="patch 3 does not divide images of 28x28 pixels"):
        ResNetClassifier((1, 28, 28), 10, patch_size=3)
    for wrong in (0, -2):
        with pytest.raises(UserError, match=f"patch {wrong} does not divide"):
            ResNetClassifier((1, 28, 28), 10, patch_size=wrong)


@pytest.mark.parametrize(
    ("depth", "stages", "near"), [(21, 3, (20, 26)), (5, 3, (8, 14)), (2, 3, (8, 14)), (11, 2, (10, 14))]
)
def test_a_depth_that_does_not_come_out_even_is_refused_with_two_that_do(depth, stages, near):
    widths = (4,) * stages
    with pytest.raises(UserError) as error:
        ResNetClassifier((3, 8, 8), 10, depth=depth, widths=widths)
    message = f"depth {depth} does not come out even over {stages} stages; try {near[0]} or {near[1]}"
    assert str(error.value) == message
    for depth in near:
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in ResNet(3, 10, depth, widths).modules()) == depth


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_type": "resnet"}, "kind is 'resnet'; choose one of plain, batch_norm, residual, residual_batch_norm"),
        ({"init": "xavier"}, "init is 'xavier'; choose one of default, he"),
        ({"weights": "DEFAULT"}, "weights DEFAULT belong to torchvision's networks"),
        ({"widths": ()}, r"widths \[\] must name at least one stage"),
        ({"widths": (4, 0, 4)}, r"widths \[4, 0, 4\] must name .* at least 1 channel"),
    ],
)
def test_wrong_choices_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ResNetClassifier((3, 8, 8), 10, **options)


# The pooled network


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize(("depth", "widths"), [(8, (4, 6, 8)), (11, (4, 6, 8)), (10, (1, 2, 3, 4))])
def test_depth_counts_the_layers_of_a_pooled_network_too(kind, depth, widths):
    network = PooledResNet(depth=depth, block_type=kind, widths=widths)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (depth - 2 if "batch_norm" in kind else 0), "one after each convolution but the first"
    assert all((m.bias is None) == ("batch_norm" in kind) for m in layers[1:-1])
    assert all(stage.residual == ("residual" in kind) for stage in network.stages)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_pooled_stage_is_its_formula(kind):
    torch.manual_seed(0)
    stage = PooledStage(3, 5, blocks=2, norm="batch_norm" in kind, residual="residual" in kind).eval()
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
        y = (change + y if "residual" in kind else change).clamp_min(0)
    torch.testing.assert_close(stage(x.clone()), y, rtol=1e-5, atol=1e-5)


def test_a_pooled_network_is_stem_stages_maximum_and_linear_layer_in_that_order():
    torch.manual_seed(0)
    network = PooledResNet(3, 7, depth=6, widths=(4, 6), block_type="residual").eval()
    x = torch.randn(2, 3, 9, 9)
    y = network.stem[1](x).clamp_min(0)
    sizes = [tuple(y.shape[1:])]
    for stage in network.stages:
        y = stage(y)
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(2, 8, 8), (4, 4, 4), (6, 2, 2)]
    expected = y.flatten(2).max(2).values @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (3, 9), (28, 28)])
def test_a_pooled_network_halves_images_of_any_size_as_long_as_there_is_something_to_halve(size):
    assert ResNetClassifier((1, *size), 10, backbone="pooled")(torch.randn(2, 1, *size)).shape == (2, 10)


def test_what_a_pooled_network_cannot_take_is_named():
    with pytest.raises(UserError) as error:
        ResNetClassifier((1, 4, 12), 10, backbone="pooled", depth=8, patch_size=4)
    expected = "images of 4x12 pixels are too small for backbone pooled with patch 4; it needs 8x8"
    assert str(error.value) == expected
    with pytest.raises(UserError, match="depth 9 does not come out even over 3 stages; try 8 or 11"):
        ResNetClassifier((1, 8, 8), 10, backbone="pooled", depth=9)


def test_points_are_refused():
    with pytest.raises(UserError, match=r"takes images \(C, H, W\), not samples of the shape \(2,\)"):
        ResNetClassifier((2,), 2)


@pytest.mark.parametrize("backbone", ["cifar", "pooled"])
def test_it_learns_digits(backbone):
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    model = ResNetClassifier((1, 8, 8), 10, backbone, depth=8, widths=(8, 16, 32), optimizer=adam)
    trainer = Trainer(accelerator="cpu", max_epochs=5, enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=Digits())
    (metrics,) = trainer.test(model, datamodule=Digits(), verbose=False)
    assert metrics["test/acc"] > 0.93


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


# torchvision's networks


def test_a_backbone_of_torchvision_sees_the_image_as_it_was_normalized_in_training():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = ResNetClassifier((3, 32, 32), 7, backbone="resnet18").eval()
    own = resnet18(num_classes=7).eval()
    state = {name.removeprefix("backbone."): value for name, value in model.network.state_dict().items()}
    own.load_state_dict(state)
    pixels = torch.rand(2, 3, 32, 32)  # in [0, 1], as torchvision means them
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = own((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(model(pixels * 2 - 1), expected, rtol=1e-4, atol=1e-4)
    grey = pixels[:, :1]
    repeated = (grey.repeat(1, 3, 1, 1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(grey * 2 - 1), own(repeated), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("resnext50_32x4", "resnext50_32x4d"), ("cifer", "cifar")]
)
def test_an_unknown_backbone_is_answered_with_the_nearest_name(name, near):
    with pytest.raises(UserError) as error:
        ResNetClassifier((3, 32, 32), 10, backbone=name)
    if name == "resnet19":
        assert str(error.value).startswith("there is no backbone resnet19; did you mean resnet")
    else:
        assert str(error.value) == f"there is no backbone {name}; did you mean {near}?"
    assert "\n" not in str(error.value)


def test_a_backbone_takes_grey_or_colour_images_alone():
    with pytest.raises(UserError, match="resnet18 takes grey or colour images, not 2 channels"):
        ResNetClassifier((2, 32, 32), 10, backbone="resnet18")


@pytest.mark.parametrize("error", [OSError("no network\nat all"), ValueError("IMAGENET9"), KeyError("x")])
def test_weights_that_are_not_to_be_had_are_answered_with_one_line(error, monkeypatch):
    def refuse(name, weights=None):
        raise error

    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(UserError) as caught:
        ResNetClassifier((3, 32, 32), 10, backbone="resnet18", weights="IMAGENET9")
    assert str(caught.value).startswith("the weights IMAGENET9 of resnet18 are not to be had (")
    assert "\n" not in str(caught.value)


class Backbone(nn.Module):
    """As small as a network of torchvision's kind can be."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 1000)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def test_pretrained_weights_are_fetched_once_and_not_again_with_a_checkpoint(monkeypatch, tmp_path):
    warnings.filterwarnings("ignore")
    asked_for = []

    def get_model(name, weights=None):
        asked_for.append((name, weights))
        return Backbone()

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    model = ResNetClassifier((1, 8, 8), 10, backbone="resnet50", weights="DEFAULT", depth=21)
    assert model.network.backbone.fc.weight.shape == (10, 4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=Digits())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert model.hparams["weights"] == "DEFAULT", "the model itself still says where it came from"
    loaded = ResNetClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert asked_for == [("resnet50", "DEFAULT"), ("resnet50", None)]
    x = torch.randn(3, 1, 8, 8)
    assert loaded(x).equal(model.eval()(x))
