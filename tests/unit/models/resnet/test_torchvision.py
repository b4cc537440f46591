"""torchvision's ResNets as networks of a classifier, pretrained or not."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import Classifier
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models import TorchvisionResNet


def classifier(shape, classes=10, **options) -> Classifier:
    return Classifier(shape, classes, partial(TorchvisionResNet, **options))


def test_a_backbone_of_torchvision_gets_images_normalized_as_in_its_training():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = classifier((3, 32, 32), 7).eval()
    own = resnet18(num_classes=7).eval()
    state = {name.removeprefix("backbone."): value for name, value in model.network.state_dict().items()}
    state |= {f"fc.{name}": state.pop(f"head.{name}") for name in ("weight", "bias")}
    own.load_state_dict(state)
    pixels = torch.rand(2, 3, 32, 32)  # in [0, 1], torchvision's range
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = own((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(model(pixels * 2 - 1), expected, rtol=1e-4, atol=1e-4)
    grey = pixels[:, :1]
    repeated = (grey.repeat(1, 3, 1, 1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(grey * 2 - 1), own(repeated), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "near"), [("resnet19", "resnet"), ("resnext50_32x4", "resnext50_32x4d")])
def test_an_unknown_name_is_refused_with_the_nearest_one(name, near):
    with pytest.raises(UserError, match=f"^torchvision has no {name}; did you mean {near}"):
        classifier((3, 32, 32), name=name)


def test_a_backbone_of_torchvision_takes_one_or_three_channels():
    with pytest.raises(UserError, match=r"resnet18 takes grey or color images .* not the shape"):
        classifier((2, 32, 32))


def test_weights_that_cannot_be_downloaded_say_where_to_put_the_file(monkeypatch):
    def refuse(name, weights=None):
        raise OSError("no network\nat all")

    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(UserError) as caught:
        classifier((3, 32, 32), weights="DEFAULT")
    message = str(caught.value)
    assert message.startswith(
        "the weights DEFAULT of resnet18 cannot be downloaded (no network); put https://download."
    )
    assert message.endswith(f".pth into {torch.hub.get_dir()}/checkpoints, or give null for random weights")


def test_weights_that_do_not_exist_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"^resnet18 has no weights IMAGENET9; did you mean IMAGENET1K_V1\?$"):
        classifier((3, 32, 32), weights="IMAGENET9")


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
    model = classifier((1, 8, 8), name="resnet50", weights="DEFAULT")
    assert model.network.head.weight.shape == (10, 4)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=Digits())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert requested == [("resnet50", "DEFAULT"), ("resnet50", None)]
    x = torch.randn(3, 1, 8, 8)
    assert loaded(x).equal(model.eval()(x))
