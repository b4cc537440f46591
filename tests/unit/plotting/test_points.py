"""Plots of points."""

import numpy as np
import torch

from zoo.plotting.points import plot_points


def test_points_are_plotted_at_their_coordinates():
    corner = torch.tensor([[-1.0, -1.0]])
    image = plot_points(corner + torch.zeros(500, 2), torch.cat([corner, -corner])).astype(int)
    red = (image[..., 0] - image[..., 2]) > 80
    red[:120, 250:] = False  # the legend
    rows, columns = np.nonzero(red)
    assert len(rows) > 3
    assert (rows > 350).all() and (columns < 150).all(), "at the lower left"


def test_points_in_one_dimension_are_a_histogram_of_density():
    """Samples are red bars, data grey ones, each at its value."""
    points, data = torch.full((100, 1), 1.0), torch.full((100, 1), -1.0)
    image = plot_points(points, data, within=torch.tensor([[-2.0], [2.0]])).astype(int)
    red = (image[..., 0] - image[..., 2]) > 80
    grey = (abs(image - 201).sum(2) < 30) & ~red
    red[:120, 250:] = grey[:120, 250:] = False  # the legend
    middle = image.shape[1] / 2
    assert np.nonzero(red)[1].min() > middle
    assert 30 < np.nonzero(grey)[1].mean() < middle
