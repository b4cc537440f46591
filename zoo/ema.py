"""Exponential moving average of a network's weights, with a half-life in images, so that it means the same at every
batch size and number of devices (Karras et al. 2022, arXiv 2206.00364, appendix F.2, as EDM and StyleGAN use it).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """A copy of `network` whose weights follow the original's as an exponential moving average.

    The running statistics of batch normalization are averaged like the weights that they belong to; those of the
    original would be foreign to the average as long as the weights move fast. An average of variances is not the
    variance under averaged weights, though: after a jump of the weights it can be far off for several half-lives.
    Where that matters, `torch.optim.swa_utils.update_bn` measures the statistics of the average anew.

    The average is a submodule like any other: its weights are in the owner's state dict, under their own names.

    Args:
        network: the network to follow; it is copied.
        half_life: images after which the weight of an old value has halved.
        warmup: the half-life is at most this share of the images seen so far, so that the random initial weights are
            forgotten early.
    """

    def __init__(self, network: nn.Module, half_life: float, warmup: float = 0.05) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.half_life = half_life
        self.warmup = warmup
        self.images = 0

    def decay(self, images: int) -> float:
        """Share of the average that is kept in an update that `images` new images stand behind."""
        half_life = min(self.half_life, self.warmup * self.images)
        return 0.5 ** (images / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, network: nn.Module, images: int) -> None:
        """Moves the average towards `network`, which has been trained on `images` more images, on all devices."""
        self.images += images
        weight = 1 - self.decay(images)
        averages: list[Tensor] = list(self.network.parameters())
        values: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, values, weight)
        for average, current in zip(self.network.buffers(), network.buffers(), strict=True):
            if average.is_floating_point():  # constants stay as they are, infinite ones too
                current = torch.where(average == current, current, average.lerp(current, weight))
            average.copy_(current)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.network(*args, **kwargs)

    def get_extra_state(self) -> dict[str, int]:
        return {"images": self.images}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.images = state["images"]
