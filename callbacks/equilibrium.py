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
from torch import Tensor, nn

from zoo.callbacks.run_folder import run_folder, takes_part
from zoo.contracts import (
    Adversarial,
    Generative,
    KnownDensity,
    KnownDistribution,
    OwnLoss,
    data_of,
    is_conditional,
    offers,
    require,
)
from zoo.errors import UserError, check_seed
from zoo.files import atomic_write
from zoo.metrics import SlicedWasserstein, two_sample_accuracy
from zoo.plotting.equilibrium import plot_equilibrium
from zoo.plotting.images import save_png

TRIAL = 20  # samples, and data points, of the trial before training


class EquilibriumReport(Callback):
    """Compares a GAN on points with the theoretical equilibrium at the end of training.

    Writes `equilibrium.json` into the run's folder, prints a table and logs `theory/...`. For any LightningModule that
    offers `zoo.contracts.Generative` and `Adversarial`, on a data module that offers `KnownDistribution`, as `Points`
    does. For points in one dimension with a `KnownDensity`, also `equilibrium.png`. A conditional model draws the
    classes that the data has, and the two-sample test sees points together with their classes. Everything is measured
    once on a few points before training, so that what cannot be measured fails there.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if takes_part(trainer):
            # A model or data that cannot be measured fails here, not after the training.
            data = data_of(trainer)
            self.measure(pl_module, data, n=TRIAL)
            if _has_figure(data):
                self._curves(pl_module, data, n=TRIAL)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not takes_part(trainer):
            return
        data = data_of(trainer)
        rows = self.measure(pl_module, data)
        figure = self._curves(pl_module, data) if self._folder is not None and _has_figure(data) else None
        if not trainer.is_global_zero:
            return
        rank_zero_info(_table(rows))
        values = {f"theory/{name}": row["measured"] for name, row in rows.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)  # not every logger has made it
            with atomic_write(self._folder / "equilibrium.json", "w", encoding="utf-8") as file:
                file.write(json.dumps(rows, indent=2) + "\n")
            if figure is not None:
                save_png(self._folder / "equilibrium.png", plot_equilibrium(*figure), overwrite=True)

    def measure(self, model: Any, data: Any, n: int | None = None) -> dict[str, dict[str, float]]:
        """Measured and theoretical value of each quantity, and its floor if a perfect generator would differ.

        Args:
            model: adversarial model.
            data: data module that offers `KnownDistribution`.
            n: number of samples and of data points (default: the callback's).
        """
        n = n or self.n
        noise = torch.Generator().manual_seed(self.seed)
        (first, first_labels), (second, labels) = (data.sample_points(n, noise) for _ in range(2))
        samples = _sample(model, n, labels, noise)
        logits = [_logits(model, *pair) for pair in ((first, first_labels), (samples, labels))]
        real, fake = (x - offset(model, *logits) for x in logits)
        d_real, d_fake = real.sigmoid().mean().item(), fake.sigmoid().mean().item()
        value = (torch.nn.functional.logsigmoid(real).mean() + torch.nn.functional.logsigmoid(-fake).mean()).item()
        standard_error = 0.5 / math.sqrt(n)
        # What the two-sample test tells apart are points with their classes, if the model has these.
        told = [_with_classes(model, *pair) for pair in ((first, first_labels), (second, labels), (samples, labels))]
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
                "measured": two_sample_accuracy(told[0], told[2], self.seed),
                "theory": 0.5,
                "floor": two_sample_accuracy(told[0], told[1], self.seed),
                "standard_error": standard_error,
            },
        }

    def _curves(self, model: Any, data: Any, n: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions (M,), density (M,), D (M,), or (K, M) by class, and samples (N,): arguments of the figure."""
        n = n or self.n
        points, labels = data.sample_points(n, torch.Generator().manual_seed(self.seed))
        samples = _sample(model, n, labels, torch.Generator().manual_seed(self.seed))
        x = torch.linspace(points.min().item(), points.max().item(), 400).unsqueeze(1)
        shift = offset(model, _logits(model, points, labels), _logits(model, samples, labels))
        if is_conditional(model):
            classes = [torch.full((len(x),), k) for k in range(model.num_classes)]
            logits = torch.stack([_logits(model, x, labels) for labels in classes])
        else:
            logits = _logits(model, x, labels)
        return x.flatten(), data.log_prob(x).exp(), (logits - shift).sigmoid(), samples.flatten()


def _has_figure(data: Any) -> bool:
    return tuple(data.input_shape) == (1,) and offers(data, KnownDensity)


def _sample(model: Any, n: int, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Samples (n, D) on the CPU, of these classes if the model is conditional."""
    return model.sample(n, labels=labels if is_conditional(model) else None, generator=generator).cpu()


def _logits(model: Any, points: Tensor, labels: Tensor) -> Tensor:
    """Logits (N,) on the CPU, in eval mode, so that batch norm's statistics stay those of the training."""
    points = points.to(model.device)
    classes = [labels.to(points.device)] if is_conditional(model) else []
    network = model.discriminator
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.no_grad():
            return network(points, *classes).float().cpu()
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def _with_classes(model: Any, points: Tensor, labels: Tensor) -> Tensor:
    """Points (N, D), and beside them their classes as (N, K) zeros and ones if the model is conditional."""
    if not is_conditional(model):
        return points
    return torch.cat([points, torch.nn.functional.one_hot(labels, model.num_classes).to(points)], dim=1)


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
