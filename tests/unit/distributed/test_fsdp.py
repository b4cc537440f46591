"""Sharding over one rank, where the Trainer works as it does under NCCL."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.helpers.ranks import only_rank
from tests.unit.training import quiet_trainer
from zoo import ViTClassifier
from zoo.datamodules import Digits
from zoo.distributed.fsdp import FSDP2Strategy


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_sharded_model_is_evaluated_before_it_is_trained(command, monkeypatch):
    """Under gloo, Lightning evaluates without inference mode."""
    monkeypatch.setattr("lightning.pytorch.loops.utilities.dist", SimpleNamespace(get_backend=lambda: "nccl"))
    model = ViTClassifier((1, 8, 8), 10, layers=1, width=16, heads=2)
    limits = {f"limit_{split}_batches": 1 for split in ("train", "val", "test", "predict")}
    with only_rank():
        trainer = quiet_trainer(strategy=FSDP2Strategy(), devices=1, max_steps=2, **limits)
        getattr(trainer, command)(model, datamodule=Digits(batch_size=32))
        trainer.fit(model, datamodule=Digits(batch_size=32))
    assert trainer.global_step == 2
