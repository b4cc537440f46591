"""Random numbers: a seed for every sample, noise from such seeds, and the states of all generators.

Noise with a seed per sample does not depend on batch size, on the number of processes or on the device.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor


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
    return sample_seeds(int(indices.max()) + 1, torch.Generator().manual_seed(seed))[indices]


def spawn_generator() -> torch.Generator:
    """A new CPU generator, seeded by torch's global one: different at each call, reproducible by the run's seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


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
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        self.shape = tuple(shape)
        self.device = device
        self.dtype = dtype

    def __call__(self) -> Tensor:
        """The next draw, (n, *shape)."""
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        noise = torch.stack(draws) if draws else torch.empty(0, *self.shape)
        return noise.to(self.device).to(self.dtype)


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
