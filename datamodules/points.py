"""Points from known distributions, on which theory can be checked: the density, the modes and their weights are known.

The ring and the grid are those on which mode collapse of GANs is measured: the ring of Metz et al., "Unrolled
Generative Adversarial Networks" (2017, arXiv 1611.02163), and the grid of Srivastava et al., "VEEGAN" (2017, arXiv
1705.07761), brought to coordinates of order one.
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
    """A mixture of K round Gaussians of one width in D dimensions.

    Args:
        centers: the means, (K, D).
        weights: the share of each component, (K,), summing to 1.
        std: standard deviation of every component in every direction.
    """

    centers: Tensor
    weights: Tensor
    std: float

    def sample(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws `n` independent points: float32 (n, D), and the index of the component of each, int64 (n,)."""
        y = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.centers.shape[1], generator=generator)
        return self.centers[y] + self.std * noise, y

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density at `x`: (..., D) -> (...), on the device and in the precision of `x`."""
        centers, weights = self.centers.to(x), self.weights.to(x)
        z = (x.unsqueeze(-2) - centers) / self.std  # (..., K, D)
        log_volume = centers.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(weights.log() - z.square().sum(-1) / 2 - log_volume, dim=-1)


def _equal(centers: Tensor, std: float) -> GaussianMixture:
    return GaussianMixture(centers, torch.full((len(centers),), 1 / len(centers)), std)


def _ring() -> GaussianMixture:
    angles = torch.arange(8) * (2 * math.pi / 8)
    return _equal(torch.stack([angles.cos(), angles.sin()], dim=1), std=0.01)


def _grid() -> GaussianMixture:
    ticks = torch.linspace(-1, 1, 5)
    return _equal(torch.cartesian_prod(ticks, ticks), std=0.0125)


MIXTURES = {
    "gaussians": GaussianMixture(torch.tensor([[-1.5], [0.0], [1.2]]), torch.tensor([0.5, 0.3, 0.2]), std=0.4),
    "ring": _ring(),
    "grid": _grid(),
}


def sample_moons(n: int, generator: Generator | None = None, noise: float = MOONS_NOISE) -> tuple[Tensor, Tensor]:
    """Draws from two interleaved half circles of radius 1, together centred on the origin, with Gaussian noise.

    The same as scikit-learn's `make_moons` shifted by (-0.5, -0.25), but for the angles, which are drawn evenly here
    instead of laid out evenly, and the half circle of each point, drawn too: the points are independent.

    Args:
        n: number of points.
        generator: source of randomness; torch's own where it is None.
        noise: standard deviation of the noise in either direction.

    Returns:
        Points, float32 (n, 2), and labels, int64 (n,): 0 for the upper half circle, 1 for the lower.
    """
    y = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator)
    sign = 1 - 2 * y  # the lower one is the upper one turned by half a turn around the origin
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    return upper * sign.unsqueeze(1) + noise * torch.randn(n, 2, generator=generator), y


def sample_distribution(name: Distribution, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draws `n` independent points from the distribution of that name (see `Points`).

    Args:
        name: gaussians, ring, grid or moons.
        n: number of points.
        generator: source of randomness; torch's own where it is None.

    Returns:
        Points, float32 (n, D), and the index of the component of each, int64 (n,).
    """
    return sample_moons(n, generator) if name == "moons" else MIXTURES[name].sample(n, generator)


class Points(InMemoryDataModule):
    """Points in one or two dimensions from a distribution that is known in closed form; labels are its components.

    | distribution | D | components | standard deviation |
    | --- | --- | --- | --- |
    | gaussians | 1 | 3, at -1.5, 0 and 1.2 with weights 0.5, 0.3 and 0.2 | 0.4: the tails overlap |
    | ring | 2 | 8 equal ones, on a circle of radius 1 | 0.01 (in the literature 0.02 at radius 2: the same ratio) |
    | grid | 2 | 25 equal ones, 5 x 5 on [-1, 1], 0.5 apart | 0.0125 (there 0.05, 2 apart: the same ratio) |
    | moons | 2 | 2 half circles of radius 1, upper and lower | 0.05 around the curve |

    Training and test points are independent draws, by `seed`; the test points do not depend on `num_train`, and the
    validation points are taken out of the training points. The coordinates are of order one but not bounded by
    [-1, 1], unlike those of images.

    Args:
        distribution: which one.
        num_train: points for training and validation together.
        num_test: points for testing.
        batch_size: see `InMemoryDataModule`, as for the other arguments.
        seed: of the draws and of the split into training and validation points.

    Attributes:
        centers: means of the components, (K, D); None for the moons.
        weights: shares of the components, (K,); None for the moons.
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
        """Logarithm of the density at `x`: (..., D) -> (...).

        Raises:
            UserError: for the moons, whose density has no closed form.
        """
        if self._mixture is None:
            raise UserError(f"the density of {self.distribution} has no closed form; take {', '.join(MIXTURES)}")
        return self._mixture.log_prob(x)

    def sample_points(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draws `n` points that are in none of the splits, float32 (n, D)."""
        return sample_distribution(self.distribution, n, generator)[0]

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        # Streams apart from each other for any two seeds, and from the one that the base shuffles with (`seed` itself):
        # a permutation by the random numbers that the points were drawn with could depend on the points.
        generator = torch.Generator().manual_seed(4 * self.seed + (1 if train else 2))
        return sample_distribution(self.distribution, self.num_train if train else self.num_test, generator)
