"""EquilibriumReport against a perfect and an untrained GAN."""

import math

import pytest
import torch

from zoo import GAN
from zoo.callbacks import EquilibriumReport
from zoo.datamodules import Points


class PerfectGAN(GAN):
    """Its generator samples the data, and its discriminator cannot tell both apart."""

    def __init__(self, data, **options):
        super().__init__(input_shape=(1,), **options)
        self.data = data
        self.discriminator = torch.nn.Flatten(0)
        shift = 7 if self.hparams["loss"] == "relativistic" else 0
        self.discriminator.forward = lambda x: 0 * x[:, 0] + shift

    def sample(self, n, *, labels=None, generator=None):
        return self.data.sample_points(n, generator)


@pytest.mark.parametrize("loss", ["minimax", "relativistic"])
def test_a_perfect_gan_reaches_the_theory_and_the_floors(loss):
    data = Points("gaussians")
    rows = EquilibriumReport(n=1000).measure(PerfectGAN(data, loss=loss), data)
    assert rows["value"]["measured"] == pytest.approx(-math.log(4), abs=1e-5)
    assert rows["d_real"]["measured"] == rows["d_fake"]["measured"] == pytest.approx(0.5)
    assert "floor" not in rows["value"], "the theoretical value is reached, so there is no floor"
    assert rows["wasserstein_1"]["measured"] < 3 * rows["wasserstein_1"]["floor"]
    assert abs(rows["two_sample_accuracy"]["measured"] - 0.5) < 4 * rows["two_sample_accuracy"]["standard_error"]


def test_an_untrained_generator_is_far_from_its_floors():
    data = Points("gaussians")
    rows = EquilibriumReport(n=1000).measure(GAN(input_shape=(1,), loss="minimax"), data)
    assert rows["wasserstein_1"]["measured"] > 10 * rows["wasserstein_1"]["floor"]
    assert rows["two_sample_accuracy"]["measured"] > 0.7
