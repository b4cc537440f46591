"""Resizing by matrix products against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from zoo.models.resizing import resize


@pytest.mark.parametrize("sides", [(20, 20), (14, 17), (28, 40), (1, 3)])
def test_it_equals_the_antialiased_bilinear_interpolation_of_torch(sides):
    x = torch.rand(3, 2, 28, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = F.interpolate(x, sides, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(x, sides), expected, atol=1e-6, rtol=0)
    assert resize(x.bfloat16(), sides).dtype == torch.bfloat16
