"""Precision, recall, density and coverage: quality and variety of generated samples, apart from one another.

A low Fréchet distance compares two moments of the features only, and does not tell poor samples from missing ones. Here
both sets are described by balls around their points, each as large as the distance to the k-th nearest neighbor in the
same set:

- precision (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2): share of the generated samples that lie in a ball
  of the real ones;
- recall (the same): share of the real samples that lie in a ball of the generated ones;
- density (Naeem et al. 2020, arXiv 2002.09797, eq. 5): number of real balls that contain a generated sample, divided by
  k, on average; near 1 for equal distributions, higher if the samples keep to the dense regions of the data;
- coverage (the same, eq. 6): share of the real balls that contain a generated sample.

The ball of an outlier is large: one among the generated samples raises recall, one among the real samples raises
precision. Density and coverage are less sensitive to outliers. All four depend on the numbers of samples and on k, so
they mean something only beside their values for training data against held-out data.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from zoo.errors import check_at_least
from zoo.metrics.device import FixedPrecisionMetric
from zoo.seeding import seeds_at, upload

NEIGHBORS = 5  # k of Naeem et al.; Kynkäänniemi et al. use 3
MAX_SAMPLES = 2000  # of each side
CHUNK = 2**24  # distances in memory at a time


class FidelityScores(NamedTuple):
    """Result of `FidelityDiversity` and of `fidelity_scores`; all scalars, float32, higher is better.

    Attributes:
        precision: share of the generated samples near a real one, from 0 to 1.
        recall: share of the real samples near a generated one, from 0 to 1.
        density: number of real balls around a generated sample, divided by k, from 0 up.
        coverage: share of the real balls with a generated sample, from 0 to 1.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


class FidelityDiversity(FixedPrecisionMetric):
    """Precision, recall, density and coverage of generated samples by k nearest neighbors in a feature space.

    At most `max_samples` features of each side are stored on each rank, and as many of all ranks together are compared:
    those with the smallest seeds, a random choice that does not depend on the order of the data. Distances are exact
    and computed in float32, `CHUNK` at a time.

    Args:
        neighbors: k, the number of neighbors within the radius of a ball.
        max_samples: number of samples of each side that are compared, at most.

    Raises:
        UserError: `neighbors` is below 1, or `max_samples` is not above it.

    Example:
        >>> metric, extractor = FidelityDiversity(), load_extractor("digits")
        >>> metric.update(extractor(images), real=True)
        >>> metric.update(extractor(model.sample(500)), real=False)
        >>> metric.compute().recall
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    real: list[Tensor]
    real_seeds: list[Tensor]
    fake: list[Tensor]
    fake_seeds: list[Tensor]

    def __init__(self, neighbors: int = NEIGHBORS, max_samples: int = MAX_SAMPLES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least(1, neighbors=neighbors)
        check_at_least(neighbors + 1, max_samples=max_samples)
        self.neighbors = neighbors
        self.max_samples = max_samples
        self._seen = {"real": 0, "fake": 0}
        for name in ("real", "real_seeds", "fake", "fake_seeds"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool, seeds: Tensor | None = None) -> None:
        """Adds features of samples to the real or to the generated ones.

        Args:
            features: (N, d).
            real: whether the samples are real.
            seeds: random number of each sample, int64 (N,), by which it is chosen if there are too many; equal ones
                on both sides choose pairs. By default one by the sample's position.

        Raises:
            ValueError: `features` does not have the shape (N, d).
        """
        if features.ndim != 2:
            raise ValueError(f"features of shape {tuple(features.shape)}; expected (N, d)")
        side = "real" if real else "fake"
        start, n = self._seen[side], len(features)
        self._seen[side] += n
        if n == 0:
            return
        if seeds is None:
            seeds = seeds_at(torch.arange(start, start + n), seed=0)
        features = features.detach().float()
        stored, stored_seeds = getattr(self, side), getattr(self, f"{side}_seeds")
        kept, kept_seeds = self._choose([*stored, features], [*stored_seeds, upload(seeds, features.device)])
        setattr(self, side, [kept])
        setattr(self, f"{side}_seeds", [kept_seeds])

    def compute(self) -> FidelityScores:
        """The four scores; NaN if a side has at most `neighbors` samples, or a feature is not finite."""
        # A state is a list until the ranks are gathered, then a tensor.
        if not len(self.real) or not len(self.fake):
            nan = torch.full((), math.nan, device=self.device)
            return FidelityScores(nan, nan, nan, nan)
        real, _ = self._choose(self.real, self.real_seeds)
        fake, _ = self._choose(self.fake, self.fake_seeds)
        return fidelity_scores(real, fake, self.neighbors)

    def reset(self) -> None:
        super().reset()
        self._seen = {"real": 0, "fake": 0}

    def _choose(self, features: list[Tensor] | Tensor, seeds: list[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) and seeds (n,) of the `max_samples` samples with the smallest seeds."""
        features, seeds = dim_zero_cat(features), dim_zero_cat(seeds)
        if len(seeds) <= self.max_samples:
            return features, seeds
        chosen = seeds.argsort(stable=True)[: self.max_samples]
        return features[chosen], seeds[chosen]


def fidelity_scores(real: Tensor, fake: Tensor, neighbors: int = NEIGHBORS) -> FidelityScores:
    """Precision, recall, density and coverage of two sets of features.

    A ball contains the points on its surface, as in eq. 1 of Kynkäänniemi et al. A set compared with itself therefore
    has a density of (k + 1) / k, and copies of one sample have balls of radius 0.

    Args:
        real: features of real samples, (N, d).
        fake: features of generated samples, (M, d).
        neighbors: k.

    Returns:
        The scores; NaN if N or M is at most k, or a feature is not finite.
    """
    finite = real.isfinite().all() & fake.isfinite().all()
    if min(len(real), len(fake)) <= neighbors or not finite:
        nan = real.new_full((), math.nan, dtype=torch.float32)
        return FidelityScores(nan, nan, nan, nan)
    real, fake = real.float(), fake.float()
    radii, fake_radii = _radii(real, neighbors), _radii(fake, neighbors)
    balls = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)  # real ones that contain a sample, (M,)
    recalled, covered = [], []
    for part, radius in zip(_split(real, fake), _split(radii, fake), strict=True):
        distances = _distances(part, fake)  # (n, M)
        inside = distances <= radius[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= fake_radii).any(1))
    return FidelityScores(
        precision=(balls > 0).float().mean(),
        recall=torch.cat(recalled).float().mean(),
        density=balls.float().mean() / neighbors,
        coverage=torch.cat(covered).float().mean(),
    )


def _radii(x: Tensor, neighbors: int) -> Tensor:
    """Distance of each sample (N, d) to its k-th nearest neighbor among the others, (N,)."""
    # One more, because each sample is at distance 0 from itself.
    parts = [_distances(part, x).topk(neighbors + 1, largest=False).values[:, -1] for part in _split(x, x)]
    return torch.cat(parts)


def _split(x: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Parts of `x` with at most `CHUNK` distances to the others."""
    return x.split(max(1, CHUNK // len(others)))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (N, M). Not by matrix products, which give copies a distance of up to 1e-3 instead of 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
