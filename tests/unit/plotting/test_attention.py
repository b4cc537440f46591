"""Maps of attention weights."""

import numpy as np
import torch

from zoo.plotting.attention import plot_attention


def test_each_layer_is_a_row_of_panels_and_each_head_a_column():
    weights = torch.eye(4)[None].expand(3, 4, 4)
    one = plot_attention({"layer 1": weights}, "abcd", "abcd")
    two = plot_attention({"layer 1": weights, "layer 2": weights}, "abcd", "abcd")
    assert one.shape[1] > 2.5 * one.shape[0], "three heads side by side"
    assert two.shape[1] == one.shape[1] and two.shape[0] == 2 * one.shape[0]


def test_larger_weights_are_darker():
    def darkness(diagonal: float) -> float:
        weights = torch.full((1, 2, 2), 1 - diagonal)
        weights[:, [0, 1], [0, 1]] = diagonal
        image = plot_attention({"": weights}, "ab", "ab").astype(int)
        blue = image[..., 2] - image[..., 0] > 20
        return float(np.where(blue, 255 - image[..., 0], 0)[: image.shape[0] // 2, : image.shape[1] // 2].sum())

    assert darkness(1.0) > 1.5 * darkness(0.5) > 0
