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
        # As a number, since reading the tensor would wait for the device; the tensor is for the state dict.
        self.images = 0
        self.stale = False
        self._updating: list[BatchNorm] = []  # layers whose originals update their statistics in training
        self._pairs: Pairs | None = None
        self.register_buffer("images_seen", torch.tensor(0))
        self.register_state_dict_pre_hook(self._write_images)
        self.register_load_state_dict_post_hook(self._read_images)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keep_precision(fn, chain(self.parameters(), self.buffers())), recurse)

    def decay(self, images: int) -> float:
        """Weight of the old average in an update after `images` further images."""
        half_life = min(self.half_life, self.warmup * self.images)
        return 0.5 ** (images / half_life) if half_life > 0 else 0.0

    def start(self) -> None:
        """Finds the layers of both networks anew at the next update; after layers have been replaced."""
        self._pairs = None

    @torch.no_grad()
    def update(self, network: nn.Module, images: int) -> None:
        """Updates the average after `network` has been trained on `images` further images, counted over all devices."""
        if self._pairs is None or self._pairs.network is not network:
            self._pairs = Pairs(self.network, network)
        self.images += images
        weight = 1 - self.decay(images)
        for averages, values in self._pairs.averaged():
            torch._foreach_lerp_(averages, [value.to(averages[0].dtype) for value in values], weight)
        for averages, values in self._pairs.copied():
            torch._foreach_copy_(averages, values)
        norms = self._pairs.norms
        self._updating = [norm for norm, original in norms if original.training and original.track_running_stats]
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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pairs": None}  # a copy has no part in the network that was trained

    def _write_images(self, *_: Any) -> None:
        self.images_seen.fill_(self.images)

    def _read_images(self, *_: Any) -> None:
        self.images = int(self.images_seen)


Slot = tuple[dict[str, Any], str]  # parameters or buffers of a module, and the name of one


class Pairs:
    """Parameters and buffers of an averaged network beside those of the original, each group for one operator.

    Tensors are looked up in each step, since they are others after a move to another device or a division into shards;
    to search the modules for them would take longer than the update.

    Args:
        average: averaged network.
        network: original, with the same layers.
    """

    def __init__(self, average: nn.Module, network: nn.Module) -> None:
        self.network = network
        self.norms = list(zip(_batch_norms(average), _batch_norms(network), strict=True))
        statistics = {id(norm._buffers) for norm, _ in self.norms}
        self._averaged = list(zip(_slots(average, "_parameters"), _slots(network, "_parameters"), strict=True))
        self._copied: list[tuple[Slot, Slot]] = []
        for mine, its in zip(_slots(average, "_buffers"), _slots(network, "_buffers"), strict=True):
            # The difference of infinite values, as in masks, would be NaN.
            moves = mine[0][mine[1]].is_floating_point() and id(mine[0]) not in statistics
            finite = moves and bool(its[0][its[1]].isfinite().all())
            (self._averaged if finite else self._copied).append((mine, its))

    def averaged(self) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
        """Tensors of the average that move by a part of the difference, and the original's, by dtype."""
        return _by_dtype(self._averaged)

    def copied(self) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
        """Tensors that are taken from the original: statistics of batch normalization, integers, infinite values."""
        return _by_dtype(self._copied)


def _slots(network: nn.Module, kind: str) -> list[Slot]:
    """Where the tensors of one kind are, each tensor once."""
    found: dict[int, Slot] = {}
    for module in network.modules():
        tensors = vars(module)[kind]
        for name, tensor in tensors.items():
            if tensor is not None:
                found.setdefault(id(tensor), (tensors, name))
    return list(found.values())


def _by_dtype(pairs: list[tuple[Slot, Slot]]) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Tensors at pairs of places, in lists of one dtype each: of mixed lists a GPU would compute each tensor alone.

    Tensors in shards, as FSDP's parameters are, have lists of their own.
    """
    groups: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
    for (mine, name), (its, other) in pairs:
        average, value = mine[name], its[other]
        key = (average.dtype, value.dtype, hasattr(average, "full_tensor"))
        averages, values = groups.setdefault(key, ([], []))
        averages.append(average)
        values.append(value)
    return groups.values()


def _batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]
