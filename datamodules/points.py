"""Points from distributions whose modes and weights are known, most of them with a known density.

The ring (Metz et al. 2017, "Unrolled Generative Adversarial Networks", arXiv 1611.02163) and the grid (Srivastava et
al. 2017, "VEEGAN", arXiv 1705.07761) are the usual benchmarks for mode collapse, here scaled to coordinates of order
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from zoo.datamodules.base import InMemoryDataModule
from zoo.errors import UserError, check_at_least

Distribution = Literal["gaussians", "ring", "grid", "moons"]
MOONS_NOISE = 0.05


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Mixture of K isotropic Gaussians of equal width in D dimensions.

    Args:
        centers: means, (K, D).
        weights: weights of the components, (K,), with sum 1.
        std: standard deviation of every component in every direction.
    """

    centers: Tensor
    weights: Tensor
    std: float

    def sample(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws `n` independent points, float32 (n, D), and their components' indices, int64 (n,)."""
        y = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.centers.shape[1], generator=generator)
        return self.centers[y] + self.std * noise, y

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at x (..., D), of shape (...), on the device and in the dtype of x."""
        centers, weights = self.centers.to(x), self.weights.to(x)
        z = (x.unsqueeze(-2) - centers) / self.std  # (..., K, D)
        log_volume = centers.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(weights.log() - z.square().sum(-1) / 2 - log_volume, dim=-1)


def _equal_weights(centers: Tensor, std: float) -> GaussianMixture:
    return GaussianMixture(centers, torch.full((len(centers),), 1 / len(centers)), std)


def _ring() -> GaussianMixture:
    angles = torch.arange(8) * (2 * math.pi / 8)
    return _equal_weights(torch.stack([angles.cos(), angles.sin()], dim=1), std=0.01)


def _grid() -> GaussianMixture:
    ticks = torch.linspace(-1, 1, 5)
    return _equal_weights(torch.cartesian_prod(ticks, ticks), std=0.0125)


MIXTURES = {
    "gaussians": GaussianMixture(torch.tensor([[-1.5], [0.0], [1.2]]), torch.tensor([0.5, 0.3, 0.2]), std=0.4),
    "ring": _ring(),
    "grid": _grid(),
}


def sample_moons(n: int, generator: Generator | None = None, noise: float = MOONS_NOISE) -> tuple[Tensor, Tensor]:
    """Draws from two interleaved half circles of radius 1, together centered on the origin, with Gaussian noise.

    Like scikit-learn's `make_moons` shifted by (-0.5, -0.25), but the points are independent: half circle and angle of
    each point are drawn at random instead of evenly spaced.

    Args:
        n: number of points.
        generator: random number generator; torch's global one by default.
        noise: standard deviation of the noise in each direction.

    Returns:
        Points, float32 (n, 2), and labels, int64 (n,): 0 for the upper half circle, 1 for the lower one.
    """
    y = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator)
    sign = 1 - 2 * y  # the lower half circle is the upper one, rotated by 180 degrees around the origin
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    return upper * sign.unsqueeze(1) + noise * torch.randn(n, 2, generator=generator), y


def sample_distribution(name: Distribution, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draws `n` independent points from a distribution of `Points`.

    Args:
        name: name of the distribution: "gaussians", "ring", "grid" or "moons".
        n: number of points.
        generator: random number generator; torch's global one by default.

    Returns:
        Points, float32 (n, D), and their components' indices, int64 (n,).
    """
    return sample_moons(n, generator) if name == "moons" else MIXTURES[name].sample(n, generator)


class Points(InMemoryDataModule):
    """Points in one or two dimensions from a known distribution, labeled by its components.

    | distribution | D | components | standard deviation |
    | --- | --- | --- | --- |
    | gaussians | 1 | 3, at -1.5, 0 and 1.2 with weights 0.5, 0.3 and 0.2 | 0.4: the tails overlap |
    | ring | 2 | 8 of equal weight, on a circle of radius 1 | 0.01 (the paper's ratio: 0.02 at radius 2) |
    | grid | 2 | 25 of equal weight, 5 x 5 on [-1, 1], 0.5 apart | 0.0125 (the paper's ratio: 0.05, 2 apart) |
    | moons | 2 | 2 half circles of radius 1, upper and lower | 0.05 around the curve |

    Training and test points are drawn independently, by `seed`; test points do not depend on `num_train`. Validation
    points are held out from the training points. Coordinates are of order one, but not bounded by [-1, 1] as images
    are.

    Args:
        distribution: name of the distribution, see the table.
        num_train: number of points for training and validation together.
        num_test: number of points for testing.
        batch_size: see `InMemoryDataModule`, as for the other arguments.
        seed: random seed of the points and of the split into training and validation points.

    Attributes:
        centers: means of the components, (K, D); None for the moons.
        weights: weights of the components, (K,); None for the moons.
        std: standard deviation of each component in each direction; None for the moons.
    """

    def __init__(
        self,
        distribution: Distribution = "gaussians",
        num_train: int = 50_000,
        num_test: int = 10_000,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 10_000,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, repeats, drop_last, seed)
        if distribution not in get_args(Distribution):
            raise UserError(f"distribution is {distribution!r}; it must be one of {', '.join(get_args(Distribution))}")
        check_at_least(1, num_train=num_train, num_test=num_test)
        self.distribution = distribution
        self.num_train = num_train
        self.num_test = num_test
        self._mixture = MIXTURES.get(distribution)
        self.centers = self._mixture.centers if self._mixture else None
        self.weights = self._mixture.weights if self._mixture else None
        self.std = self._mixture.std if self._mixture else None
        self.num_classes, dimension = (2, 2) if self.centers is None else tuple(self.centers.shape)
        self.input_shape = (dimension,)
        self.class_names = ("upper", "lower") if self.centers is None else tuple(map(str, range(self.num_classes)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at x (..., D), of shape (...).

        Raises:
            UserError: the distribution is "moons", whose density has no closed form.
        """
        if self._mixture is None:
            raise UserError(f"the density of {self.distribution} has no closed form; use {', '.join(MIXTURES)}")
        return self._mixture.log_prob(x)

    def sample_points(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws `n` new points, float32 (n, D), which are in none of the splits, and their labels, int64 (n,)."""
        return sample_distribution(self.distribution, n, generator)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        # Different streams for each seed and split, and different from the stream by which the base class shuffles
        # (`seed` itself), so that the permutation cannot depend on the points.
        generator = torch.Generator().manual_seed(4 * self.seed + (1 if train else 2))
        return sample_distribution(self.distribution, self.num_train if train else self.num_test, generator)
