"""Dropout at test time (Monte Carlo dropout), by masks that belong to the samples.

The masks of a sample follow from its place in the data, not from the batch that it is in, so that predictions do not
depend on the batch size, on the number of processes or on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from zoo._lightning import compiled_modules
from zoo.seeding import BITS, hashed_bits, stream_keys

ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
DROPOUT_LAYERS = (nn.Dropout, *CHANNELS, nn.AlphaDropout)
SATURATED = -1.7580993408473766  # lowest output of a SELU, to which alpha dropout sets units (Klambauer et al. 2017)


@contextmanager
def dropout_on(module: nn.Module, keys: Tensor) -> Iterator[None]:
    """Dropout layers of a module in eval mode drop inside the context; modes and random states are left alone.

    Args:
        module: module in eval mode, whose inputs have N samples.
        keys: a key for each sample, int64 (N,), from which its masks are drawn; see `zoo.seeding.stream_keys`.
    """
    calls = count()

    def drop(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return dropped(layer, output, stream_keys(keys, next(calls)))

    layers = [m for m in module.modules() if isinstance(m, DROPOUT_LAYERS)]
    # Compiled code does not see hooks that are registered later.
    eager = torch.compiler.set_stance("force_eager") if compiled_modules(module) else nullcontext()
    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        with eager:
            yield
    finally:
        for handle in handles:
            handle.remove()


def dropped(layer: Any, x: Tensor, keys: Tensor) -> Tensor:
    """What a dropout layer in training mode makes of `x` (N, ...), with the mask of each sample by its key, (N,).

    A first dimension of k N, as of the patches of N images, counts as k parts of each sample. Of any other layout the
    masks are those of the rows, whichever samples they are of.
    """
    if layer.p == 1:
        return torch.zeros_like(x)
    if len(x) % len(keys):
        keys = stream_keys(torch.arange(len(x), device=x.device), int(keys[0]))
    shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if isinstance(layer, CHANNELS) else x.shape
    bits = hashed_bits(keys, torch.Size(shape).numel() // len(keys)).view(shape)
    kept = bits >= round(layer.p * 2**BITS)
    if isinstance(layer, ALPHA):  # keeps mean and variance of standard normal units
        scale = ((1 - layer.p) * (1 + layer.p * SATURATED**2)) ** -0.5
        return torch.where(kept, x, SATURATED) * scale - scale * layer.p * SATURATED
    return torch.where(kept, x / (1 - layer.p), 0)
