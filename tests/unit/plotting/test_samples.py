"""Samples as images and as frames of an animation."""

import numpy as np
import pytest
import torch

from zoo.plotting.samples import class_columns, render_frames, render_samples


def test_images_are_a_grid_and_points_a_plot():
    images, points = torch.zeros(4, 1, 8, 8), torch.randn(50, 2)
    assert render_samples(images, columns=2).shape == (2 * 34 + 2, 2 * 34 + 2, 3)
    assert render_samples(points).shape == (500, 500, 3)
    assert (render_samples(points) != render_samples(points, data=5 * points)).any()


def test_frames_of_points_have_the_same_axes():
    states = torch.stack([10 * torch.ones(20, 2), torch.zeros(20, 2)])
    states[:, 0] = torch.tensor([[10.0, 10.0], [10.0, 10.0]])  # one point stays in its place
    first, second = (frame.astype(int) for frame in render_frames(states))
    red = [(frame[..., 0] - frame[..., 2]) > 80 for frame in (first, second)]
    corner = (slice(0, 140), slice(360, 500))  # upper right, where both have that point
    assert np.array_equal(first.shape, second.shape)
    assert red[0][corner].sum() > 3 and red[1][corner].sum() > 3
    assert red[1][360:, :140].sum() > 3 and red[0][360:, :140].sum() == 0, "the others move to the lower left"


def test_frames_of_images_are_grids():
    frames = render_frames(torch.linspace(-1, 1, 3).view(3, 1, 1, 1, 1).expand(3, 4, 1, 8, 8), columns=4)
    assert [frame.shape for frame in frames] == [(36, 4 * 34 + 2, 3)] * 3
    assert [frame[10, 10, 0] for frame in frames] == [0, 128, 255]


@pytest.mark.parametrize(
    ("n", "num_classes", "columns"),
    [
        (64, 10, 10),
        (10, 10, 10),
        (64, 2, 8),  # four columns for each class
        (64, 1, 8),
        (50, 1, 7),
        (4, 10, None),  # fewer samples than classes
        (64, 1000, None),
        (64, 60, None),  # a second row of four
    ],
)
def test_a_grid_has_one_class_in_a_column_unless_it_were_long_and_narrow(n, num_classes, columns):
    assert class_columns(n, num_classes) == columns
    assert columns is None or columns % num_classes == 0


@pytest.mark.parametrize("n", [1, 2, 9, 50, 64, 100])
def test_no_grid_is_longer_than_sixteen_times_its_width(n):
    for num_classes in range(1, 2 * n):
        columns = class_columns(n, num_classes)
        assert columns is None or 1 / 16 <= columns / -(-n // columns) <= 16
