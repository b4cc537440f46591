"""The Vision Transformer's network."""

import torch
from torch import nn

from zoo.models.vit.network import SimpleViT


def test_logits_depend_on_the_positions_of_patches_through_their_encoding_only():
    network = SimpleViT((3, 8, 12), 5, patch_size=4, layers=2, width=32, heads=4).eval()
    nn.init.normal_(network.head.weight)
    x = torch.randn(2, 3, 8, 12)
    assert network(x).shape == (2, 5)
    assert network.positions.shape == (6, 32)
    assert len(network.positions.unique(dim=0)) == 6
    swapped = torch.cat([x[..., 4:8], x[..., :4], x[..., 8:]], dim=-1)  # the same patches at other positions
    assert not torch.allclose(network(x), network(swapped), atol=1e-4)
    network.positions.zero_()
    torch.testing.assert_close(network(x), network(swapped), atol=1e-5, rtol=1e-5)
