"""A normalizing flow of points in the plane: an ordinary LightningModule and DataLoaders, without the zoo."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Flow(LightningModule):
    """Affine coupling layers (Dinh et al. 2017, "Density estimation using Real NVP", arXiv 1605.08803).

    Args:
        depth: number of coupling layers.
        width: units of their hidden layers.
        lr: learning rate of Adam.
    """

    def __init__(self, depth: int = 8, width: int = 64, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
            for _ in range(depth)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (N,) at points x (N, 2)."""
        total = torch.zeros(len(x), device=x.device)
        for coupling in self.couplings:
            kept, changed = x.unbind(1)
            log_scale, shift = coupling(kept[:, None]).unbind(1)
            x = torch.stack([(changed - shift) * (-log_scale.tanh()).exp(), kept], dim=1)
            total = total - log_scale.tanh()
        return total - 0.5 * x.square().sum(1) - math.log(2 * math.pi)

    # The arguments are those by which the zoo's callbacks draw: zoo.contracts.Generative.
    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """New points (n, 2)."""
        x = torch.randn(n, 2, generator=generator).to(self.device)
        for coupling in reversed(self.couplings):
            changed, kept = x.unbind(1)
            log_scale, shift = coupling(kept[:, None]).unbind(1)
            x = torch.stack([kept, changed * log_scale.tanh().exp() + shift], dim=1)
        return x

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = -self.log_prob(batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", -self.log_prob(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def moons(n: int, seed: int, batch_size: int, shuffle: bool = False) -> DataLoader[Tensor]:
    """Points (N, 2) on two half circles, n // 2 on each."""
    angle = torch.linspace(0, math.pi, n // 2)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    points = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper])
    points += 0.05 * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed))
    return DataLoader(points, batch_size, shuffle=shuffle)  # type: ignore[arg-type]  # a tensor is a sequence of rows
