"""Grids of images in figures."""

from __future__ import annotations

import torch

from zoo.plotting.figures import new_figure, show_images


def test_names_are_at_the_middle_of_their_images():
    _, (ax,) = new_figure(1)
    black, white = -torch.ones(3, 1, 8, 8), torch.ones(3, 1, 8, 8)
    show_images(ax, [black, white], ["first", "second"], ["black", "white"], "a title")
    (image,) = ax.get_images()
    pixels = image.get_array()
    assert pixels.shape == (2 * 34 + 2, 3 * 34 + 2, 3), "each pixel is enlarged to 4x4"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["first", "second"]
    middle = int(ax.get_xticks()[0])
    assert [pixels[int(y), middle].tolist() for y in ax.get_yticks()] == [[0, 0, 0], [255, 255, 255]]
    assert ax.get_title() == "a title"
