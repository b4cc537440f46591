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


def test_patches_are_in_the_order_of_their_positions_row_by_row():
    network = SimpleViT((1, 8, 12), 5, patch_size=4, layers=1, width=32, heads=4).eval()
    nn.init.constant_(network.stem.weight, 1 / 16)  # every channel is the mean of the patch
    nn.init.zeros_(network.stem.bias)
    entered = []
    network.stack.register_forward_pre_hook(lambda module, given: entered.append(given[0]))
    numbers = torch.arange(6.0).view(2, 3)
    network(numbers.repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None])
    torch.testing.assert_close(entered[0][0] - network.positions, torch.arange(6.0)[:, None].expand(6, 32))
    of_rows, of_columns = network.positions.view(2, 3, 2, 16).unbind(2)
    assert of_rows[:, 0].equal(of_rows[:, 1]) and not of_rows[0].equal(of_rows[1])
    assert of_columns[0].equal(of_columns[1]) and not of_columns[:, 0].equal(of_columns[:, 1])
