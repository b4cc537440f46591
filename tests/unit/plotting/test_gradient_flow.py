"""The map of gradient norms."""

import math

import numpy as np

from zoo.plotting.gradient_flow import plot_gradient_flow

COLORS = {"red": np.array([214, 39, 40]), "grey": np.array([191, 191, 191])}


def test_missing_and_nonfinite_gradients_have_colors_of_their_own():
    norms = np.full((4, 3), 1e-3)
    plain = plot_gradient_flow(norms, [0, 50, 100], ["a"] * 4, "")
    norms[0, 0], norms[3, 2], norms[1, 1] = 0, math.inf, math.nan
    marked = plot_gradient_flow(norms, [0, 50, 100], ["a"] * 4, "").astype(int)
    colors = {name: (abs(marked - color).sum(2) < 6).sum() for name, color in COLORS.items()}
    assert colors["red"] > 2000 and colors["grey"] > 2000
    assert not (abs(plain.astype(int) - COLORS["red"]).sum(2) < 6).sum() > 2000
