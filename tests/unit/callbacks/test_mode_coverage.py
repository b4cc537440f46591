"""Mode coverage on known mixtures."""

import math

import pytest
import torch

from tests.unit.callbacks.test_samples import fit
from zoo import GAN
from zoo.callbacks import ModeCoverage
from zoo.callbacks.mode_coverage import mode_coverage
from zoo.datamodules import Points
from zoo.errors import UserError


def test_modes_are_counted_and_samples_within_three_sigma_are_good():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = torch.tensor([[0.0, 0.29], [0.0, 0.31], [10.0, 0.0], [5.0, 5.0]])
    assert mode_coverage(points, centers, std=0.1) == (2, 0.5)
    data = Points("grid")
    generator = torch.Generator().manual_seed(0)
    modes, share = mode_coverage(data.sample_points(20_000, generator)[0], data.centers, data.std)
    assert modes == 25
    assert share == pytest.approx(1 - math.exp(-4.5), abs=0.003), "within 3 sigma in two dimensions"


def test_data_without_centers_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match="ModeCoverage needs centers and std, which Digits does not have: use Points",
    ):
        fit(GAN(input_shape=(1, 8, 8)), ModeCoverage(), tmp_path)
