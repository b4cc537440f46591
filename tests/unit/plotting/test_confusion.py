"""The figure of a confusion matrix: which cell is which, and that every size and name is drawn."""

from __future__ import annotations

import pytest
import torch

from zoo.plotting.confusion import plot_confusion


def dark_center(image) -> tuple[float, float]:
    """Center of the dark blue pixels, from the left and from the top, as fractions of the figure."""
    plot = image[:, : image.shape[1] * 3 // 4].astype(int)  # without the color bar
    rows, columns = ((plot[..., 2] - plot[..., 0] > 60) & (plot[..., 2] > 90)).nonzero()
    return columns.mean() / image.shape[1], rows.mean() / image.shape[0]


def test_rows_are_true_classes_and_columns_predicted_ones():
    counts = torch.zeros(3, 3, dtype=torch.long)
    counts[0, 2] = 7
    x, y = dark_center(plot_confusion(counts, ["a", "b", "c"]))
    assert x > 0.5 and y < 0.4, "the first row from the top, the last column"


@pytest.mark.parametrize(("classes", "least", "most"), [(2, 300, 600), (40, 1800, 2500)])
def test_the_size_of_the_figure_grows_with_the_classes(classes, least, most):
    image = plot_confusion(torch.eye(classes, dtype=torch.long) * 12345, [f"class {c}" for c in range(classes)])
    assert all(least < side < most for side in image.shape[:2]) and image.shape[2] == 3


def test_names_are_drawn_as_they_are():
    """Text between two $ would be typeset as a formula, and fail if it is none."""
    plain, formula = (plot_confusion(torch.eye(2, dtype=torch.long), [name, "b"]) for name in ("abc", "$x_{$"))
    assert plain.shape == formula.shape and (plain != formula).any()
