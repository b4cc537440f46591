"""Inception's features: the literature's network and input, torchmetrics' own distance, and what is missing."""

import hashlib
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from tests.helpers.command import fails
from zoo import GAN
from zoo.errors import UserError
from zoo.metrics import FrechetDistance, InceptionFeatures, distance_for, inception, load_extractor
from zoo.metrics.inception import load_inception, to_pixels, weights_path

needs_network = pytest.mark.skipif(
    find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed: pip install lightning-zoo[fid]"
)


class SmallNetwork(nn.Module):
    """Stand-in for Inception: uint8 images (N, 3, H, W) to a tuple of features (N, 12), of random weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        assert x.dtype == torch.uint8
        self.seen.append(x)
        return (self.layers(x.float() / 255),)


class OnlyFeatures(nn.Module):
    """The stand-in as torchmetrics takes a network: features instead of a tuple."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNetwork()

    def forward(self, x):
        return self.network(x)[0]


@pytest.fixture
def small(monkeypatch) -> InceptionFeatures:
    monkeypatch.setattr(InceptionFeatures, "num_features", 12)
    return InceptionFeatures(SmallNetwork())


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of gray images with 256 levels, as floats in [-1, 1], and the second one darker."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (120, 1, 9, 9), generator=generator, dtype=torch.uint8)
    return pixels[:60] / 127.5 - 1, (pixels[60:] // 2) / 127.5 - 1


def test_distance_is_that_of_torchmetrics(small, images):
    ours, theirs = FrechetDistance(small), FrechetInceptionDistance(OnlyFeatures())
    for x, real in zip(images, (True, False), strict=True):
        ours.update(x, real=real)
        theirs.update(((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1), real=real)
    assert ours.compute().item() > 1e-3
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-3)


def test_images_have_three_channels_and_256_levels(small):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(levels / 127.5 - 1), levels.expand(1, 3, 16, 16))
    color = torch.tensor([-1.2, 0.0, 1.01]).reshape(1, 3, 1, 1)  # a sampler may leave [-1, 1] a little
    assert to_pixels(color).flatten().tolist() == [0, 128, 255]


def test_images_are_cut_into_parts_that_fit_in_memory(small):
    features = small(torch.zeros(120, 1, 8, 8))
    assert features.shape == (120, 12) and features.dtype == torch.float32
    assert [len(part) for part in small.network.seen] == [50, 50, 20]


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (3, 8, 8)])
def test_other_shapes_are_named(small, shape):
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\) or \(N, 3, H, W\)"):
        small(torch.zeros(shape))


def test_a_model_draws_without_the_network():
    name, metric = distance_for((1, 8, 8), "inception")
    assert name == "fd" and metric.extractor.num_features == 2048
    model = GAN((1, 8, 8), extractor="inception")
    assert deepcopy(model).sample(2).shape == (2, 1, 8, 8)
    assert model.distance.extractor.network is None


def test_line_of_the_first_validation_calls_it_the_fid():
    line = GAN((1, 8, 8), extractor="inception")._describe_distance(2000)
    assert line == (
        "Fréchet distance in the 2048 features of Inception, weights 6726825d: the FID at n = 2,000, where the "
        "literature has 50,000"
    )


def test_missing_package_is_one_line_before_the_training(monkeypatch, capsys, in_an_empty_folder):
    monkeypatch.setattr(inception, "find_spec", lambda name: None)
    message = fails(capsys, "fit", "--config=gan_digits.yaml", "--model.extractor=inception", "--trainer.max_steps=1")
    assert message == (
        "the extractor inception needs torch-fidelity, which is not installed: pip install lightning-zoo[fid]"
    )


def test_missing_file_is_one_line_that_says_where_it_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as error:
        load_extractor("inception")(torch.zeros(1, 1, 8, 8))
    assert str(weights_path()) == f"{tmp_path}/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    assert f"cannot read {weights_path()}: No such file or directory; download https://" in str(error.value)


def test_another_file_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "find_spec", lambda name: object())
    path = tmp_path / "weights.pth"
    path.write_bytes(b"other weights")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a file of strangers is loaded"))
    with pytest.raises(UserError, match=r"its sha256 begins with \w{8}, not 6726825d; download https"):
        load_inception(path)


@needs_network
@pytest.mark.slow
def test_features_are_those_of_torchmetrics_own_network(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "random.pth"
    with pytest.MonkeyPatch.context() as patch:  # random weights, instead of a download
        module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
        patch.setattr(module, lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save(FeatureExtractorInceptionV3("inception", ["2048"]).state_dict(), path)
    state = torch.random.get_rng_state()
    network = load_inception(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert torch.equal(torch.random.get_rng_state(), state)
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path), antialias=False, normalize=True)
    x = torch.rand(3, 3, 28, 28)
    features = InceptionFeatures(network)(((x * 255).byte()) / 127.5 - 1)
    assert features.shape == (3, 2048) and features.std() > 0
    torch.testing.assert_close(features, metric.inception((x * 255).byte()))
