"""Positional encodings against their formulas."""

import math
from itertools import product

import pytest
import torch

from zoo.models.transformer.positions import frequencies, rotate, sinusoids


def test_sinusoids_equal_the_formula_of_the_paper():
    table = sinusoids(20, 8)
    for position, i in product(range(20), range(4)):
        angle = position / 10_000 ** (2 * i / 8)
        assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_products_of_rotated_vectors_depend_on_their_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16).double()
    product_at = {}
    for start, distance in product((0, 5, 40), (0, 3, 11)):
        angles = torch.outer(torch.tensor([start, start + distance]).double(), frequencies(16).double())
        value = (rotate(q, angles[:1]) * rotate(k, angles[1:])).sum().item()
        assert value == pytest.approx(product_at.setdefault(distance, value), abs=1e-9)
    assert product_at[0] == pytest.approx((q * k).sum().item())
    assert abs(product_at[3] - product_at[11]) > 1e-3
