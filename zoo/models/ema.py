"""Exponential moving average (EMA) of a network's weights.

The half-life is given in images, so that it means the same for every batch size and number of devices (Karras et al.
2022, arXiv 2206.00364, appendix F.2).

The running statistics of batch normalization are no weights: an average of variances is not the variance under averaged
weights, and those of the original belong to other weights. They are measured anew, as by
`torch.optim.swa_utils.update_bn`, before the average is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.precision import keep_precision

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class EMA(nn.Module):
    """A copy of a network whose weights are the exponential moving average of the original's.

    After an update, the running statistics of batch normalization are those of the original until `measure` is called.

    The average is a submodule: its weights are in the owner's state dict. It is at least in float32, in which a weight
    moves by a thousandth of a difference; in half precision it would stay where it is.

    Args:
        network: network to average; it is copied.
        half_life: number of images after which the weight of an old value has halved.
        warmup: upper bound of the half-life as a fraction of the images seen so far, so that the initial weights are
            forgotten early.

    Attributes:
        stale: whether weights have changed since the running statistics were measured.
    """

    images_seen: Tensor

    def __init__(self, network: nn.Module, half_life: float, warmup: float = 0.05) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.half_life = half_life
        self.warmup = warmup
        # As a tensor for the state dict, and as a number, since reading the tensor would wait for the device.
        self.images = 0
        self.stale = False
        self._updating: list[BatchNorm] = []  # layers whose originals update their statistics in training
        self.register_buffer("images_seen", torch.tensor(0))
        self.register_load_state_dict_post_hook(self._read_images)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keep_precision(fn, chain(self.parameters(), self.buffers())), recurse)

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
        values = [value.to(average.dtype) for average, value in zip(averages, network.parameters(), strict=True)]
        torch._foreach_lerp_(averages, values, weight)
        pairs = list(zip(_batch_norms(self.network), _batch_norms(network), strict=True))
        statistics = {id(buffer) for _, norm in pairs for buffer in norm.buffers(recurse=False)}
        for average, current in zip(self.network.buffers(), network.buffers(), strict=True):
            if average.is_floating_point() and id(current) not in statistics:
                value = current.to(average.dtype)  # equal values are kept exactly, infinite ones too
                average.copy_(torch.where(average == value, value, average.lerp(value, weight)))
            else:
                average.copy_(current)
        self._updating = [norm for norm, original in pairs if original.training and original.track_running_stats]
        self.stale = bool(self._updating)

    @torch.no_grad()
    def measure(self, batches: Iterable[Any], run: Callable[[Any], Any]) -> None:
        """Measures the running statistics of the averaged network: means over batches, each of the same weight.

        Layers that the original keeps frozen, in eval mode or without statistics, keep theirs. Dropout is off.

        Args:
            batches: batches as in training.
            run: function that runs the averaged network on a batch.
        """
        modes = {module: module.training for module in self.modules()}
        momenta = {norm: norm.momentum for norm in self._updating}
        self.eval()
        for norm in self._updating:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the mean over all batches
        try:
            for batch in batches:
                run(batch)
        finally:
            for module, mode in modes.items():
                module.training = mode
            for norm, momentum in momenta.items():
                norm.momentum = momentum
        self.stale = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.network(*args, **kwargs)

    def _read_images(self, *_: Any) -> None:
        self.images = int(self.images_seen)


def _batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]
