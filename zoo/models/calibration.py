"""Temperature scaling of a classifier before a test: its temperature is fitted on the validation split."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from zoo.contracts import data_of
from zoo.errors import UserError
from zoo.metrics import TemperatureFit


def check_validation(trainer: Trainer) -> None:
    """Raises a `UserError` if a run that fits a temperature has no validation."""
    if not trainer.enable_validation:
        raise UserError(
            "calibrate fits a temperature on the validation split, and this run has no validation: leave out "
            "calibrate, or set trainer.limit_val_batches above 0"
        )


def validation_batches(model: LightningModule) -> Iterator[Any]:
    """Batches of the data module's validation split on the model's device, those of this process, during a test.

    Raises:
        UserError: there is no data module.
    """
    trainer = model.trainer
    data = data_of(trainer)
    if data is None:
        raise UserError(
            "calibrate fits a temperature on the validation split, and there is no data module that has one: test with "
            "a data module, or leave out calibrate"
        )
    data.setup("validate")
    for batch in data.val_dataloader():
        yield trainer.strategy.batch_to_device(batch, model.device)


def describe(fit: TemperatureFit) -> str:
    """What a temperature does to the samples that it was fitted on, in one line."""
    if not isfinite(fit.temperature):
        return "No temperature was fitted: the logits of the validation split are not finite"
    return (
        f"Temperature {fit.temperature:.3f}, fitted on the validation split, whose NLL falls from {fit.nll_before:.4f} "
        f"to {fit.nll_after:.4f}"
    )
