"""Comparison of a trained GAN with the theoretical equilibrium p_G = p_data, D = 1/2, V = -log 4.

D near 1/2 and V near -log 4 are necessary, not sufficient: an untrained discriminator shows the same. So samples and
data are also compared directly, by the Wasserstein distance and by a classifier two-sample test (Lopez-Paz and Oquab
2017, arXiv 1610.06545), each against its floor.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.callbacks.run_folder import run_folder
from zoo.contracts import Adversarial, Generative, KnownDensity, KnownDistribution, OwnLoss, data_of, offers, require
from zoo.errors import UserError, check_seed
from zoo.files import atomic_write
from zoo.metrics import SlicedWasserstein, two_sample_accuracy
from zoo.plotting.equilibrium import plot_equilibrium
from zoo.plotting.images import save_png


class EquilibriumReport(Callback):
    """Compares a GAN on points with the theoretical equilibrium at the end of training.

    Writes `equilibrium.json` into the run's folder, prints a table and logs `theory/...`. For any LightningModule that
    offers `zoo.contracts.Generative` and `Adversarial`, on a data module that offers `KnownDistribution`, as `Points`
    does. For points in one dimension with a `KnownDensity`, also `equilibrium.png`.

    Args:
        n: number of samples, and of data points, in each comparison.
        seed: random seed of samples and data.
    """

    def __init__(self, n: int = 10_000, seed: int = 0) -> None:
        if n < 100:
            raise UserError(f"EquilibriumReport needs n of at least 100, not {n}")
        check_seed(seed=seed)
        self.n = n
        self.seed = seed
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(self, data_of(trainer), KnownDistribution, remedy="use Points, whose distribution is known")
        require(self, pl_module, Generative, remedy="use GAN")
        require(self, pl_module, Adversarial, remedy="use GAN")
        self._folder = run_folder(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data = data_of(trainer)
        rows = self.measure(pl_module, data)
        rank_zero_info(_table(rows))
        values = {f"theory/{name}": row["measured"] for name, row in rows.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)  # not every logger has made it
            with atomic_write(self._folder / "equilibrium.json", "w", encoding="utf-8") as file:
                file.write(json.dumps(rows, indent=2) + "\n")
            if tuple(data.input_shape) == (1,) and offers(data, KnownDensity):
                self._plot(self._folder / "equilibrium.png", pl_module, data)

    def measure(self, model: Any, data: Any) -> dict[str, dict[str, float]]:
        """Measured and theoretical value of each quantity, and its floor if a perfect generator would differ."""
        noise = torch.Generator().manual_seed(self.seed)
        first, second = (data.sample_points(self.n, noise) for _ in range(2))
        samples = model.sample(self.n, generator=noise).cpu()
        logits = [_logits(model, points) for points in (first, samples)]
        real, fake = (x - offset(model, *logits) for x in logits)
        d_real, d_fake = real.sigmoid().mean().item(), fake.sigmoid().mean().item()
        value = (torch.nn.functional.logsigmoid(real).mean() + torch.nn.functional.logsigmoid(-fake).mean()).item()
        standard_error = 0.5 / math.sqrt(self.n)
        return {
            "value": {"measured": value, "theory": -math.log(4)},
            "d_real": {"measured": d_real, "theory": 0.5},
            "d_fake": {"measured": d_fake, "theory": 0.5},
            "wasserstein_1": {
                "measured": _wasserstein(first, samples),
                "theory": 0.0,
                "floor": _wasserstein(first, second),
            },
            "two_sample_accuracy": {
                "measured": two_sample_accuracy(first, samples, self.seed),
                "theory": 0.5,
                "floor": two_sample_accuracy(first, second, self.seed),
                "standard_error": standard_error,
            },
        }

    def _plot(self, path: Path, model: Any, data: Any) -> None:
        samples = model.sample(self.n, generator=torch.Generator().manual_seed(self.seed)).cpu()
        points = data.sample_points(self.n, torch.Generator().manual_seed(self.seed))
        x = torch.linspace(points.min().item(), points.max().item(), 400).unsqueeze(1)
        shift = offset(model, _logits(model, points), _logits(model, samples))
        probability = (_logits(model, x) - shift).sigmoid()
        picture = plot_equilibrium(x.flatten(), data.log_prob(x).exp(), probability, samples.flatten())
        save_png(path, picture, overwrite=True)


def _logits(model: Any, points: Tensor) -> Tensor:
    with torch.no_grad():
        return model.discriminator(points.to(model.device)).float().cpu()


def offset(model: Any, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Arbitrary offset of the logits if the model's `adversarial_loss` depends on their differences only; else 0."""
    return model.adversarial_loss.offset(real_logits, fake_logits) if offers(model, OwnLoss) else torch.zeros(())


def _wasserstein(x: Tensor, y: Tensor) -> float:
    # On rank 0 alone, which would wait for the others for ever.
    metric = SlicedWasserstein(x.shape[1], sync_on_compute=False)
    metric.update(x, real=True)
    metric.update(y, real=False)
    return metric.compute().item()


def _table(rows: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':<22}{'measured':>10}{'theory':>10}{'floor':>10}"]
    for name, row in rows.items():
        floor = f"{row['floor']:>10.4f}" if "floor" in row else ""
        lines.append(f"{name:<22}{row['measured']:>10.4f}{row['theory']:>10.4f}{floor}")
    return "\n".join(lines)
