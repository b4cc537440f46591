"""ResNetClassifier: its backbones and its options."""

import pytest
import torch
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import ResNetClassifier
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models import CIFARResNet


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
        network = CIFARResNet((3, 32, 32), 10, depth, widths)
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block_type": "resnet"},
            "block_type is 'resnet'; choose one of plain, batch_norm, residual, residual_batch_norm",
        ),
        ({"init": "xavier"}, "init is 'xavier'; choose one of default, he"),
        ({"backbone": "resnet18"}, "backbone is 'resnet18'; choose one of cifar, pooled"),
        ({"whitening": True}, "whitening is for the backbone pooled"),
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
    expected = "images of 4x12 pixels are too small for a pooled ResNet with patch_size 4; it needs 8x8"
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


# Whitening


def whitening(**options):
    return ResNetClassifier((1, 8, 8), 10, "pooled", 8, (4, 4, 4), whitening=True, **options)


def test_training_starts_with_filters_that_whiten_training_images_in_the_network_and_in_its_average(tmp_path):
    torch.manual_seed(0)
    model, data = whitening(ema_half_life=100), Digits(batch_size=32)
    quiet_trainer(max_steps=3, limit_val_batches=0).fit(model, datamodule=data)
    expected = whitening()
    expected.network.whiten(data.training_samples(5000))
    for network in (model.network, model.ema.network):
        assert torch.equal(network.stem[1].weight, expected.network.stem[1].weight)


def test_a_classifier_that_starts_from_another_one_keeps_its_filters(tmp_path):
    first = whitening()
    first.network.whiten(torch.randn(50, 1, 8, 8))
    torch.save({"state_dict": first.state_dict(), "hyper_parameters": dict(first.hparams)}, tmp_path / "first.ckpt")
    model = whitening(init_from=str(tmp_path / "first.ckpt"))
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=Digits(batch_size=32))
    assert torch.equal(model.network.stem[1].weight, first.network.stem[1].weight)


def test_whitening_needs_training_images():
    x, y = torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    with pytest.raises(UserError, match="whitening needs training images, which the data does not give"):
        quiet_trainer(max_steps=1, limit_val_batches=0).fit(whitening(), loader)
