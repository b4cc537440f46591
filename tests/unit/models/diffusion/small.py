"""Small diffusion models that several tests train."""

from __future__ import annotations

from functools import cache
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from tests.helpers.networks import unet
from tests.unit.training import quiet_trainer
from zoo import Diffusion
from zoo.datamodules import Digits

SMALL: dict[str, Any] = {"input_shape": (1, 8, 8), "num_classes": 10, "network": unet(16)}


def fit(model: Any, steps: int = 4, data: LightningDataModule | None = None, **options: Any) -> Trainer:
    trainer = quiet_trainer(max_steps=steps, **({"limit_val_batches": 0} | options))
    trainer.fit(model, datamodule=data or Digits(batch_size=32))
    return trainer


def untrained(**options: Any) -> Diffusion:
    seed_everything(0, verbose=False)
    return Diffusion(**(SMALL | {"sigma_data": 0.5} | options)).eval()


def trained(**options: Any) -> Diffusion:
    """A model after a few steps, so that its output depends on labels and noise level."""
    model = _small(**options)
    model.load_state_dict(_trained_state(**options))
    return model.eval()


def _small(**options: Any) -> Diffusion:
    seed_everything(0, verbose=False)
    return Diffusion(**(SMALL | {"ema_half_life": 0, "lr_scheduler": None} | options))


@cache
def _trained_state(**options: Any) -> dict[str, Any]:
    model = _small(**options)
    fit(model, 30)
    return model.state_dict()
