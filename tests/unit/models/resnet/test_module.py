"""ResNetClassifier: its backbones, its options and pretrained weights."""

import pytest
import torch
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import ResNetClassifier
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models.resnet.network import ResNet


@pytest.mark.parametrize(
    ("depth", "stages", "near"), [(21, 3, (20, 26)), (5, 3, (8, 14)), (2, 3, (8, 14)), (11, 2, (10, 14))]
)
def test_a_depth_that_does_not_fit_is_refused_with_the_nearest_ones_that_do(depth, stages, near):
    widths = (4,) * stages
    with pytest.raises(UserError) as error:
        ResNetClassifier((3, 8, 8), 10, depth=depth, widths=widths)
    message = f"depth {depth} does not divide into {stages} equal stages; try {near[0]} or {near[1]}"
    assert str(error.value) == message
    for depth in near:
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in ResNet(3, 10, depth, widths).modules()) == depth


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block_type": "resnet"},
            "block_type is 'resnet'; choose one of plain, batch_norm, residual, residual_batch_norm",
        ),
        ({"init": "xavier"}, "init is 'xavier'; choose one of default, he"),
        ({"weights": "DEFAULT"}, "weights DEFAULT are for torchvision's networks"),
        ({"widths": ()}, r"widths \[\] must have at least one stage"),
        ({"widths": (4, 0, 4)}, r"widths \[4, 0, 4\] must have .* at least 1 channel each"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ResNetClassifier((3, 8, 8), 10, **options)


def test_a_patch_size_that_does_not_divide_the_image_is_refused():
    with pytest.raises(UserError, match="patch_size 3 does not divide images of 28x28 pixels"):
        ResNetClassifier((1, 28, 28), 10, patch_size=3)
    for wrong in (0, -2):
        with pytest.raises(UserError, match=f"patch_size {wrong} does not divide"):
            ResNetClassifier((1, 28, 28), 10, patch_size=wrong)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (3, 9), (28, 28)])
def test_a_pooled_network_takes_images_of_any_size_from_2x2_pixels_on(size):
    assert ResNetClassifier((1, *size), 10, backbone="pooled")(torch.randn(2, 1, *size)).shape == (2, 10)


def test_images_too_small_for_the_pooled_network_are_refused():
    with pytest.raises(UserError) as error:
        ResNetClassifier((1, 4, 12), 10, backbone="pooled", depth=8, patch_size=4)
    expected = "images of 4x12 pixels are too small for backbone pooled with patch_size 4; it needs 8x8"
    assert str(error.value) == expected
    with pytest.raises(UserError, match="depth 9 does not divide into 3 equal stages; try 8 or 11"):
        ResNetClassifier((1, 8, 8), 10, backbone="pooled", depth=9)


def test_points_are_refused():
    with pytest.raises(UserError, match=r"takes images \(C, H, W\), not samples of the shape \(2,\)"):
        ResNetClassifier((2,), 2)


@pytest.mark.parametrize(("backbone", "widths"), [("cifar", (8, 12, 16)), ("pooled", (8, 16, 32))])
def test_it_learns_digits(backbone, widths):
    torch.manual_seed(0)
    model = ResNetClassifier((1, 8, 8), 10, backbone, depth=8, widths=widths, optimizer=adam)
    trainer = quiet_trainer(max_epochs=5, limit_val_batches=0)
    trainer.fit(model, datamodule=Digits())
    (metrics,) = trainer.test(model, datamodule=Digits(), verbose=False)
    assert metrics["test/acc"] > 0.93


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def test_a_backbone_of_torchvision_gets_images_normalized_as_in_its_training():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = ResNetClassifier((3, 32, 32), 7, backbone="resnet18").eval()
    own = resnet18(num_classes=7).eval()
    state = {name.removeprefix("backbone."): value for name, value in model.network.state_dict().items()}
    own.load_state_dict(state)
    pixels = torch.rand(2, 3, 32, 32)  # in [0, 1], torchvision's range
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = own((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(model(pixels * 2 - 1), expected, rtol=1e-4, atol=1e-4)
    grey = pixels[:, :1]
    repeated = (grey.repeat(1, 3, 1, 1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(grey * 2 - 1), own(repeated), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("resnext50_32x4", "resnext50_32x4d"), ("cifer", "cifar")]
)
def test_an_unknown_backbone_is_named_with_the_nearest_one(name, near):
    with pytest.raises(UserError) as error:
        ResNetClassifier((3, 32, 32), 10, backbone=name)
    if name == "resnet19":
        assert str(error.value).startswith("there is no backbone resnet19; did you mean resnet")
    else:
        assert str(error.value) == f"there is no backbone {name}; did you mean {near}?"
    assert "\n" not in str(error.value)


def test_a_backbone_of_torchvision_takes_one_or_three_channels():
    with pytest.raises(UserError, match="resnet18 takes grey or color images, not 2 channels"):
        ResNetClassifier((2, 32, 32), 10, backbone="resnet18")


@pytest.mark.parametrize("error", [OSError("no network\nat all"), ValueError("IMAGENET9"), KeyError("x")])
def test_weights_that_cannot_be_loaded_are_a_one_line_error(error, monkeypatch):
    def refuse(name, weights=None):
        raise error

    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(UserError) as caught:
        ResNetClassifier((3, 32, 32), 10, backbone="resnet18", weights="IMAGENET9")
    assert str(caught.value).startswith("the weights IMAGENET9 of resnet18 are not available (")
    assert "\n" not in str(caught.value)


class SmallBackbone(nn.Module):
    """A small network with the last layer of torchvision's ResNets."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 1000)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def test_pretrained_weights_are_loaded_once_and_not_again_from_a_checkpoint(monkeypatch, tmp_path):
    requested = []

    def get_model(name, weights=None):
        requested.append((name, weights))
        return SmallBackbone()

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    model = ResNetClassifier((1, 8, 8), 10, backbone="resnet50", weights="DEFAULT", depth=21)
    assert model.network.backbone.fc.weight.shape == (10, 4)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=Digits())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert model.hparams["weights"] == "DEFAULT", "the model itself keeps its origin"
    loaded = ResNetClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert requested == [("resnet50", "DEFAULT"), ("resnet50", None)]
    x = torch.randn(3, 1, 8, 8)
    assert loaded(x).equal(model.eval()(x))
