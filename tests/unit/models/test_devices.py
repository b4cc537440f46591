"""Every model on a device other than the CPU: what it refuses, see `tests.helpers.device`."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.helpers.device import OnStandIn, one_rank, stand_in
from tests.helpers.models import MODELS
from tests.unit.models.test_precision import OPTIONS, build
from tests.unit.training import quiet_trainer


@pytest.mark.parametrize("kind", ["mps", "maia"])
@pytest.mark.parametrize("name", [*MODELS, *OPTIONS])
def test_every_model(name, kind, tmp_path):
    model, data = build(name, tmp_path)
    with stand_in(kind) as place, one_rank() if kind != "mps" else nullcontext():
        options = {"accelerator": "auto", "strategy": OnStandIn(place), "max_epochs": 1, "log_every_n_steps": 1}
        trainer = quiet_trainer(**options, limit_train_batches=2, limit_val_batches=2, limit_test_batches=1, limit_predict_batches=1, use_distributed_sampler=False)
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        trainer.test(model, datamodule=data, verbose=False)
        model.to(place)
        if hasattr(model, "sample"):
            model.sample(3, **({"max_new_tokens": 4} if model.tokens else {}))
        else:
            trainer.predict(model, datamodule=data)
