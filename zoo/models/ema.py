"""Exponential moving average (EMA) of a network's weights.

The half-life is given in images, so that it means the same for every batch size and number of devices (Karras et al.
2022, arXiv 2206.00364, appendix F.2).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """A copy of a network whose weights are the exponential moving average of the original's.

    Running statistics of batch normalization are averaged like weights, because those of the original do not fit the
    averaged weights while these change fast. An average of variances is not the variance under averaged weights,
    however: after a jump of the weights it can be far off for several half-lives. `torch.optim.swa_utils.update_bn`
    measures the statistics of the averaged network anew.

    The average is a submodule: its weights are in the owner's state dict.

    Args:
        network: network to average; it is copied.
        half_life: number of images after which the weight of an old value has halved.
        warmup: upper bound of the half-life as a fraction of the images seen so far, so that the initial weights are
            forgotten early.
    """

    images_seen: Tensor

    def __init__(self, network: nn.Module, half_life: float, warmup: float = 0.05) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.half_life = half_life
        self.warmup = warmup
        # As a tensor for the state dict, and as a number, since reading the tensor would wait for the device.
        self.images = 0
        self.register_buffer("images_seen", torch.tensor(0))
        self.register_load_state_dict_post_hook(self._read_images)

    def decay(self, images: int) -> float:
        """Weight of the old average in an update after `images` further images."""
        half_life = min(self.half_life, self.warmup * self.images)
        return 0.5 ** (images / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, network: nn.Module, images: int) -> None:
        """Updates the average after `network` has been trained on `images` further images, counted over all devices."""
        self.images += images
        self.images_seen.fill_(self.images)
        weight = 1 - self.decay(images)
        averages: list[Tensor] = list(self.network.parameters())
        values: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, values, weight)
        for average, current in zip(self.network.buffers(), network.buffers(), strict=True):
            if average.is_floating_point():  # equal values are kept exactly, infinite ones too
                current = torch.where(average == current, current, average.lerp(current, weight))
            average.copy_(current)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.network(*args, **kwargs)

    def _read_images(self, *_: Any) -> None:
        self.images = int(self.images_seen)
