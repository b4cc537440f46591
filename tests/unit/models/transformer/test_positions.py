"""Positional encodings against their formulas."""

import math
from itertools import product

import pytest
import torch

from zoo.models.transformer.positions import encode_range, rotate, rotation, sinusoids


def test_sinusoids_equal_the_formula_of_the_paper():
    table = sinusoids(torch.arange(20), 8)
    for position, i in product(range(20), range(4)):
        angle = position / 10_000 ** (2 * i / 8)
        assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_products_of_rotated_vectors_depend_on_their_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16).double()
    product_at = {}
    for start, distance in product((0, 5, 40), (0, 3, 11)):
        factors = rotation(torch.tensor([start, start + distance]), 16).double()
        value = (rotate(q, factors[:, :1]) * rotate(k, factors[:, 1:])).sum().item()
        assert value == pytest.approx(product_at.setdefault(distance, value), abs=1e-5)
    assert product_at[0] == pytest.approx((q * k).sum().item())
    assert abs(product_at[3] - product_at[11]) > 1e-3


def test_a_rotation_turns_each_pair_of_channels_by_its_angle():
    x = torch.randn(1, 1, 3, 4)
    rotated = rotate(x, rotation(torch.arange(3), 4))
    for position, pair in product(range(3), range(2)):
        angle = position / 10_000 ** (2 * pair / 4)
        turned = complex(*x[0, 0, position, pair::2]) * complex(math.cos(angle), math.sin(angle))
        assert complex(*rotated[0, 0, position, pair::2]) == pytest.approx(turned, abs=1e-6)


@pytest.mark.parametrize("encode", [sinusoids, rotation])
def test_tables_on_a_device_are_made_once_and_hold_the_encoding_of_any_range(encode):
    for start, length in ((0, 5), (5, 1), (6, 1), (0, 8), (3, 13)):
        table = encode_range(encode, start, length, 8, torch.device("cpu"))
        assert torch.equal(table, encode(torch.arange(start, start + length), 8))
    first, second = (encode_range(encode, 0, length, 8, torch.device("cpu")) for length in (5, 8))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_a_table_of_inference_mode_serves_training():
    x = torch.randn(1, 1, 7, 6, requires_grad=True)
    with torch.inference_mode():
        encode_range(rotation, 0, 7, 6, x.device)
    rotate(x, encode_range(rotation, 0, 7, 6, x.device)).sum().backward()
    assert x.grad.isfinite().all()
