"""Mode collapse: number of modes of a known mixture that a generator reaches, and share of samples near a mode."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.contracts import Generative, KnownModes, data_of, require
from zoo.errors import check_at_least, check_seed


def mode_coverage(points: Tensor, centers: Tensor, std: float, radius: float = 3.0) -> tuple[int, float]:
    """Counts the modes that samples reach, and measures the fraction of samples that belong to a mode.

    A sample belongs to the nearest center if it is within `radius` standard deviations of it; a mode is reached if at
    least one sample belongs to it (Srivastava et al., "VEEGAN", 2017, arXiv 1705.07761, section 4.1).

    Args:
        points: samples, (N, D).
        centers: centers of the modes, (K, D).
        std: standard deviation of every mode.
        radius: radius of a mode, in standard deviations.

    Returns:
        Number of modes reached, and fraction of samples that belong to a mode.
    """
    distance, nearest = torch.cdist(points, centers.to(points)).min(dim=1)
    good = distance <= radius * std
    return len(nearest[good].unique()), good.float().mean().item()


class ModeCoverage(Callback):
    """Logs `val/modes` and `val/high_quality` after each validation on a known mixture.

    For any LightningModule that offers `zoo.contracts.Generative`, on a data module that offers `KnownModes`, as
    `Points` does with the distributions gaussians, ring and grid.

    Args:
        n: number of samples.
        seed: random seed of their noise.
    """

    def __init__(self, n: int = 2500, seed: int = 0) -> None:
        check_at_least(1, n=n)
        check_seed(seed=seed)
        self.n = n
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(self, data_of(trainer), KnownModes, remedy="use Points with the distribution gaussians, ring or grid")
        require(self, pl_module, Generative, remedy="use a generative model")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # On every rank with the same noise: all log the same values, and none waits for another.
        data = data_of(trainer)
        generator = torch.Generator().manual_seed(self.seed)
        points = pl_module.sample(self.n, generator=generator)  # type: ignore[operator]
        modes, share = mode_coverage(points, data.centers, data.std)
        pl_module.log("val/modes", float(modes), prog_bar=True, sync_dist=True)
        pl_module.log("val/high_quality", share, sync_dist=True)
