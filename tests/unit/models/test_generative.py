"""The distance between samples and data, and the interpolation of latent vectors."""

import math

import torch

from tests.helpers.networks import mlps
from tests.unit.training import quiet_trainer
from zoo import GAN
from zoo.datamodules import Digits, Points
from zoo.models.generative import slerp

SMALL = {"input_shape": (1, 8, 8), "num_classes": 10, "latent_dim": 4, **mlps(16)}


def test_slerp_keeps_the_norm_and_is_exact_for_equal_vectors():
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(start, end, 0.5), torch.full((1, 2), math.sqrt(2)))
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_the_distance_of_images_is_at_its_floor_for_test_images_as_samples():
    data = Digits()
    data.setup()

    class Copies(GAN):
        """Returns test images as samples."""

        def sample(self, n, *, labels=None, generator=None, seeds=None):
            return data.split("test")[0][torch.arange(n) % 297]

    results = {}
    for model in (GAN(**SMALL), Copies(**SMALL)):
        (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=Digits(), verbose=False)
        results[type(model)] = metrics
    assert results[GAN]["val/fd_floor"] == results[Copies]["val/fd_floor"]
    assert 0 < results[Copies]["val/fd_floor"] < 5
    assert results[Copies]["val/fd"] < 5
    assert results[GAN]["val/fd"] > 30


def test_the_distance_of_points_is_logged_as_w1_with_its_floor():
    data = Points(distribution="gaussians", num_train=21_000)
    model = GAN(input_shape=(1,))
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    assert metrics["val/w1_floor"] < 0.1 < metrics["val/w1"]


def test_without_an_extractor_no_distance_is_logged():
    model = GAN(**SMALL, extractor="none")
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=Digits(), verbose=False) or [{}]
    assert not metrics
