"""Random numbers: a seed for every sample, noise from such seeds, and the states of all generators.

Noise with a seed per sample, and bits with a key per sample, do not depend on batch size, number of processes or
device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor


def upload(x: Tensor, device: torch.device | str) -> Tensor:
    """Numbers drawn on the CPU, on a device; a copy to a CUDA device does not wait for what the device is doing."""
    pinned = torch.device(device).type == "cuda" and x.device.type == "cpu"
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


def sample_seeds(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws a seed for each of `n` samples.

    Args:
        n: number of samples.
        generator: random number generator; the first seeds are the same for every `n`.

    Returns:
        int64 (n,).
    """
    device = generator.device if generator else None
    return torch.randint(2**62, (n,), generator=generator, device=device)


def seeds_at(indices: Tensor, seed: int) -> Tensor:
    """Seeds of the samples at these indices of a data split, independent of how the split is batched.

    Args:
        indices: int64 (n,).
        seed: seed of the whole split.

    Returns:
        int64 (n,).
    """
    return _seed_table(1 << int(indices.max()).bit_length(), seed)[indices]


@lru_cache(maxsize=8)
def _seed_table(n: int, seed: int) -> Tensor:
    with torch.inference_mode(False):
        return sample_seeds(n, torch.Generator().manual_seed(seed))


def spawn_generator() -> torch.Generator:
    """A new CPU generator, seeded by torch's global one: different at each call, reproducible by the run's seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


class NoiseMemory:
    """Noise that is drawn again and again by the same seeds, as in every validation, kept on the device.

    Args:
        limit: bytes that are kept, at most; further noise is drawn anew.
    """

    active: NoiseMemory | None = None

    def __init__(self, limit: int = 2**27) -> None:
        self.limit = limit
        self.draws: dict[tuple[Any, ...], Tensor] = {}
        self.size = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        """Inside the context, `SampleNoise` takes from the memory what is in it, and adds what is not."""
        before, NoiseMemory.active = NoiseMemory.active, self
        try:
            yield
        finally:
            NoiseMemory.active = before

    def add(self, key: tuple[Any, ...], noise: Tensor) -> None:
        """Keeps a draw if there is room for it."""
        size = noise.numel() * noise.element_size()
        if self.size + size <= self.limit:
            self.draws[key] = noise
            self.size += size

    def clear(self) -> None:
        """Forgets all draws."""
        self.draws, self.size = {}, 0


class SampleNoise:
    """Standard normal noise with an independent stream for every sample.

    Args:
        seeds: seed of each sample, int64 (n,).
        shape: shape of one sample.
        device: device of the result; the numbers are drawn on the CPU, so that they are the same on every device.
        dtype: dtype of the result.
    """

    def __init__(
        self,
        seeds: Tensor,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seeds = seeds.tolist()
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.dtype = dtype
        self.generators: list[torch.Generator] = []  # made when they are needed
        self.count = 0  # draws so far
        self.drawn = 0  # those that the generators have made

    def __call__(self) -> Tensor:
        """The next draw, (n, *shape)."""
        self.count += 1
        memory = NoiseMemory.active
        key = (tuple(self.seeds), self.shape, self.device, self.count) if memory else ()
        noise = memory.draws.get(key) if memory else None
        if noise is None:
            noise = upload(self._draw(), self.device)
            if memory:
                memory.add(key, noise)
        return noise.to(self.dtype, copy=memory is not None)

    def _draw(self) -> Tensor:
        """The draw of this number on the CPU; those before it that came from a memory are passed over."""
        if not self.generators:
            self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        noise = torch.empty(len(self.seeds), *self.shape, dtype=torch.float32)
        while self.drawn < self.count:
            self.drawn += 1
            for row, generator in zip(noise, self.generators, strict=True):
                torch.randn(self.shape, generator=generator, dtype=torch.float32, out=row)
        return noise


BITS = 24  # of each number of `hashed_bits`
INCREMENT = -7046029254386353131  # 2^64 divided by the golden ratio


def stream_keys(keys: Tensor, *numbers: int) -> Tensor:
    """Keys of further streams of random bits, int64 (n,): of each key, another one for every sequence of numbers.

    The mixing function is that of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").

    Args:
        keys: int64 (n,), such as the places of samples in a split.
        *numbers: numbers of the stream, such as a seed and the number of a layer.
    """
    for number in numbers:
        keys = keys + (((number + 1) * INCREMENT + 2**63) % 2**64 - 2**63)  # wrapped to int64
        for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
            keys = (keys ^ ((keys >> shift) & (2 ** (64 - shift) - 1))) * factor
        keys = keys ^ ((keys >> 31) & (2**33 - 1))
    return keys


def hashed_bits(keys: Tensor, count: int) -> Tensor:
    """Random integers in [0, 2^24), int32 (n, count): those of a row by its key, the same on every device.

    A hash of key and column instead of a generator for each row, which would have to be seeded in a loop. The hash is
    "lowbias32" (Wellons 2018, "Prospecting for Hash Functions").

    Args:
        keys: int64 (n,), see `stream_keys`.
        count: number of columns.
    """
    rows = (stream_keys(keys, 0) >> 32).to(torch.int32)
    columns = (stream_keys(torch.arange(count, device=keys.device), 1) >> 32).to(torch.int32)
    x = rows[:, None] ^ columns
    for shift, factor in ((16, 0x7FEB352D), (15, -2073254261)):
        x ^= (x >> shift) & (2 ** (32 - shift) - 1)
        x *= factor
    x ^= (x >> 16) & 0xFFFF
    return (x >> (32 - BITS)) & (2**BITS - 1)


def capture_random_state(device: torch.device) -> dict[str, Any]:
    """States of torch's, NumPy's and Python's generators, and of the GPU's, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, state, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(state), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Sets the states that `capture_random_state` returned."""
    torch.set_rng_state(states["torch"].cpu())
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def gather_random_states(states: dict[str, Any]) -> list[dict[str, Any]]:
    """States of all processes, by rank. A collective: every process must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [states]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, states)
    return gathered
