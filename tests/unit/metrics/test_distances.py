"""The metrics against closed forms and second computations, and the shipped extractors against real data."""

from __future__ import annotations

import copy
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from zoo.datamodules.digits import Digits
from zoo.errors import UserError
from zoo.metrics import (
    FrechetDistance,
    SlicedWasserstein,
    extractor_for,
    frechet_distance,
    load_extractor,
    wasserstein1,
)
from zoo.metrics.features import EXTRACTORS

SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10_jpeg": (3, 32, 32)}


class Flat(nn.Module):
    """Takes the pixels themselves as features, so that the distance has a known answer."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.weight


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = Digits()
    data.setup()
    return data.split("test")


@pytest.fixture(scope="module")
def fashion_mnist() -> tuple[Tensor, Tensor]:
    """The first 1,000 test images, where the data is: nothing is downloaded for a test."""
    from zoo.datamodules.torchvision_sets import FashionMNIST

    folders = [os.environ.get("ZOO_TEST_DATA"), Path(__file__).parents[4] / "shared" / "data"]
    for folder in folders:
        if folder and (Path(folder) / "FashionMNIST" / "raw").is_dir():
            data = FashionMNIST(root=str(folder))
            data.setup("test")
            x, y = data.split("test")
            return x[:1000], y[:1000]
    pytest.skip("Fashion-MNIST is not here; set ZOO_TEST_DATA to a folder with FashionMNIST/raw")


@pytest.fixture
def metric() -> FrechetDistance:
    return FrechetDistance(load_extractor("digits"))


def distance(metric: FrechetDistance, real: Tensor, fake: Tensor) -> float:
    metric.reset()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def noisy(x: Tensor, std: float) -> Tensor:
    return (x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


# Extractors


@pytest.mark.parametrize("name", EXTRACTORS)
def test_shipped_extractor_is_frozen_float32_and_named_by_its_hash(name):
    extractor = load_extractor(name)
    assert extractor.name == name
    assert len(extractor.sha256) == 64
    assert not extractor.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in extractor.parameters())
    x = torch.rand(5, *SHAPES[name]) * 2 - 1
    assert extractor(x).shape == (5, extractor.num_features) == (5, 64)
    assert extractor.logits(x).shape == (5, 10)


def test_digits_extractor_classifies_held_out_digits(digits):
    x, y = digits
    assert (load_extractor("digits").logits(x).argmax(1) == y).float().mean() >= 0.98


def test_fashion_extractor_classifies_held_out_clothes(fashion_mnist):
    x, y = fashion_mnist
    assert (load_extractor("fashion_mnist").logits(x).argmax(1) == y).float().mean() >= 0.90


def test_features_of_training_images_have_mean_variance_one():
    data = Digits()
    data.setup()
    variances = load_extractor("digits")(data.split("train")[0]).double().var(dim=0)
    assert variances.mean() == pytest.approx(1.0, rel=1e-2)  # half precision in the file
    assert variances.min() > 1e-3  # no dead feature


def test_features_are_float32_and_the_same_under_autocast(digits):
    extractor = load_extractor("digits")
    expected = extractor(digits[0])
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor(digits[0])
        logits = extractor.logits(digits[0])
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(features, expected)


def test_images_of_another_size_are_resized_with_antialiasing():
    extractor = load_extractor("digits")
    # Stripes of period 4, as grey on average as a grey image. Plain bilinear sampling of every fourth row would take
    # rows 1 and 2 of each period alone, and see a white image.
    stripes = torch.tensor([-1.0, 1.0, 1.0, -1.0]).repeat(8)[:, None].expand(1, 1, 32, 32)
    grey, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    distance_to_grey, distance_to_white = ((extractor(stripes) - extractor(x)).norm() for x in (grey, white))
    assert distance_to_grey < 0.3 * distance_to_white


def test_loading_an_extractor_draws_no_random_numbers():
    state = torch.get_rng_state()
    load_extractor("digits")
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_is_not_disturbed_by_default_dtype_and_device():
    expected = load_extractor("digits").state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            state = load_extractor("digits").state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(state[key], expected[key]) and state[key].dtype == expected[key].dtype for key in expected)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 8, 8), "digits"),
        ((1, 28, 28), "fashion_mnist"),
        ((1, 16, 16), "fashion_mnist"),
        ((3, 32, 32), "cifar10_jpeg"),
        ((3, 8, 8), "cifar10_jpeg"),
    ],
)
def test_extractor_for_a_shape(shape, name):
    extractor = extractor_for(shape)
    assert extractor.name == name
    assert extractor(torch.zeros(2, *shape)).shape == (2, 64)


@pytest.mark.parametrize("shape", [(2,), (4, 8, 8), (8, 8), ()])
def test_no_extractor_for_what_is_no_image(shape):
    assert extractor_for(shape) is None


def test_unknown_extractor_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"'inception'.*digits, fashion_mnist, cifar10_jpeg"):
        load_extractor("inception")


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\); expected \(N, 1, H, W\)"):
        load_extractor("digits")(torch.zeros(2, 3, 8, 8))


# Fréchet distance


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.0]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    cov_a, cov_b = (rotation @ variances.diag() @ rotation.T for variances in (a, b))
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    result = frechet_distance(torch.zeros(3).double(), cov_a, shift, cov_b)
    torch.testing.assert_close(result, expected)


def test_metric_tends_to_the_closed_form_on_gaussian_samples():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(50_000, 1, 2, 2, generator=generator) for _ in range(2))
    # Four features: standard deviation 1 against 2, means 0.5 apart.
    assert distance(FrechetDistance(Flat(4)), real, 2 * fake + 0.5) == pytest.approx(4 * 1 + 4 * 0.25, rel=0.02)


@pytest.mark.parametrize("n", [297, 40])  # 40 samples: singular covariances
def test_metric_agrees_with_numpy_on_the_same_features(metric, digits, n):
    real, fake = digits[0][:n], noisy(digits[0][:n], 0.3)
    a, b = (metric.extractor(x).double().numpy() for x in (real, fake))
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * cross
    assert distance(metric, real, fake) == pytest.approx(expected, rel=1e-4)


def test_identical_sets_are_at_distance_zero(metric, digits):
    assert distance(metric, digits[0], digits[0]) == pytest.approx(0, abs=1e-5)


def test_distance_is_symmetric(metric, digits):
    x, y = digits[0][:150], noisy(digits[0][150:], 0.2)
    assert distance(metric, x, y) == pytest.approx(distance(metric, y, x), rel=1e-5)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_distance_grows_with_noise(name, request):
    x = request.getfixturevalue(name)[0]
    metric = FrechetDistance(load_extractor(name))
    values = [distance(metric, x, noisy(x, std)) for std in (0.0, 0.1, 0.2, 0.5, 1.0)]
    assert values == sorted(values)
    assert values[-1] > 10


def test_distance_sees_a_missing_class(metric, digits):
    x, y = digits
    half = torch.arange(len(x)) % 2 == 0
    floor = distance(metric, x[half], x[~half])
    assert distance(metric, x[half], x[~half & (y != 3)]) > 1.2 * floor


def test_distance_is_nan_below_two_images(metric, digits):
    metric.update(digits[0], real=True)
    assert math.isnan(metric.compute())
    metric.update(digits[0][:1], real=False)
    assert math.isnan(metric.compute())
    metric.update(digits[0][1:2], real=False)
    assert math.isfinite(metric.compute())


def test_owner_has_none_of_the_extractors_weights(metric):
    owner = nn.Module()
    owner.metric = metric
    assert not owner.state_dict()
    assert not list(owner.parameters())
    assert not list(owner.buffers())
    assert [type(module) for module in owner.modules()] == [nn.Module, FrechetDistance]
    owner.train()
    assert not metric.extractor.training


@pytest.mark.parametrize("convert", ["bfloat16", "double", "half", "to", "set_dtype"])
def test_precision_is_kept_when_the_owner_is_converted(metric, digits, convert):
    x = digits[0]
    expected = distance(metric, x, noisy(x, 0.3))
    owner = nn.Sequential(metric)
    if convert == "to":
        owner.to(torch.bfloat16)
    elif convert == "set_dtype":
        metric.set_dtype(torch.bfloat16)
    else:
        getattr(owner, convert)()
    assert float(metric.compute()) == expected  # what was summed is as it was
    assert distance(metric, x, noisy(x, 0.3)) == expected  # after a reset, too
    assert metric.real_features_sum.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in metric.extractor.parameters())


def test_extractor_follows_to_another_device(metric):
    nn.Sequential(metric).to("meta")  # a device that every machine has
    assert all(tensor.device.type == "meta" for tensor in metric.extractor.state_dict().values())
    assert metric.real_features_sum.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_distance_on_a_gpu_is_that_on_the_cpu(metric, digits):
    expected = distance(metric, digits[0], noisy(digits[0], 0.3))
    nn.Sequential(metric).cuda()
    assert distance(metric, digits[0].cuda(), noisy(digits[0], 0.3).cuda()) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_carry_the_sums_and_go_on_alone(metric, digits, duplicate):
    x = digits[0]
    expected = distance(metric, x, noisy(x, 0.3))
    other = duplicate(metric)
    assert float(other.compute()) == expected
    assert other.extractor.sha256 == metric.extractor.sha256
    assert not other.state_dict()
    other.update(x, real=False)
    assert float(other.compute()) != expected
    assert float(metric.compute()) == expected


def test_states_of_two_ranks_add_up_to_one_metric(metric, digits):
    x, y = digits[0], noisy(digits[0], 0.3)
    expected = distance(metric, x, y)
    ranks = [FrechetDistance(metric.extractor) for _ in range(2)]
    for rank, metric_of_rank in enumerate(ranks):
        metric_of_rank.update(x[rank::2], real=True)
        metric_of_rank.update(y[rank::2], real=False)
    ranks[0].merge_state(ranks[1])
    assert float(ranks[0].compute()) == pytest.approx(expected, rel=1e-4)


def test_real_images_can_outlive_a_reset(digits):
    metric = FrechetDistance(load_extractor("digits"), reset_real_features=False)
    expected = distance(metric, digits[0], noisy(digits[0], 0.3))
    metric.reset()
    metric.update(noisy(digits[0], 0.3), real=False)
    assert float(metric.compute()) == pytest.approx(expected)


# Wasserstein distance


def test_shift_on_a_line_is_the_distance():
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    metric = SlicedWasserstein(1)
    metric.update(x, real=True)
    metric.update(x[torch.randperm(1000)] - 0.75, real=False)
    assert float(metric.compute()) == pytest.approx(0.75, rel=1e-5)


def test_gaussians_on_a_line_tend_to_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200_000, generator=generator) for _ in range(2))
    # The quantile functions are z and 3 z: the mean of |2 z| is 2 sqrt(2 / pi).
    assert float(wasserstein1(x, 3 * y)) == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.02)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (12, 8), (100, 37), (64, 64)])
def test_unequal_numbers_agree_with_scipy(n, m):
    generator = torch.Generator().manual_seed(n + m)
    x, y = (torch.randn(k, 3, generator=generator).double() for k in (n, m))
    expected = [wasserstein_distance(x[:, k], y[:, k]) for k in range(3)]
    torch.testing.assert_close(wasserstein1(x, y), torch.tensor(expected).double())


def test_repeating_every_point_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, generator=generator) for _ in range(2))
    torch.testing.assert_close(wasserstein1(x.repeat(3), y), wasserstein1(x, y))


def test_shift_of_a_plane_counts_its_mean_projection():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    metric = SlicedWasserstein(2, projections=4096)
    metric.update(x, real=True)
    metric.update(x + torch.tensor([3.0, -4.0]), real=False)
    assert float(metric.compute()) == pytest.approx(5 * 2 / math.pi, rel=0.02)


def test_directions_are_fixed_and_draw_no_random_numbers():
    state = torch.get_rng_state()
    first, second = SlicedWasserstein(2), SlicedWasserstein(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.directions, second.directions)
    assert first.directions.shape == (2, 128)
    assert not first.state_dict()


def test_points_of_two_ranks_make_one_cloud():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 2, generator=generator) for k in (60, 45))
    one, *ranks = (SlicedWasserstein(2) for _ in range(3))
    for cloud, real in ((x, True), (y, False)):
        one.update(cloud, real=real)
        for rank, metric in enumerate(ranks):
            metric.update(cloud[rank::2], real=real)
    ranks[0].merge_state(ranks[1])
    torch.testing.assert_close(ranks[0].compute(), one.compute())


def test_points_keep_their_precision_when_the_owner_is_converted():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    metric = SlicedWasserstein(2)
    metric.update(x, real=True)
    metric.update(x + 1, real=False)
    expected = float(metric.compute())
    nn.Sequential(metric).to(torch.bfloat16)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(metric)))
    copied._computed = None
    with torch.autocast("cpu", torch.bfloat16):
        assert float(copied.compute()) == expected


def test_wasserstein_of_nothing_is_nan():
    metric = SlicedWasserstein(2)
    metric.update(torch.zeros(3, 2), real=True)
    assert math.isnan(metric.compute())


def test_points_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"\(3, 1\); expected \(N, 2\)"):
        SlicedWasserstein(2).update(torch.zeros(3, 1), real=True)
