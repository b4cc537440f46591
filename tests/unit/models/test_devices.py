"""Every model and its callbacks on a device other than the CPU; see `tests.helpers.device`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from tests.helpers.device import DeviceTensor, OnStandIn, one_rank, stand_in
from tests.helpers.models import MODELS
from tests.unit.models.test_precision import OPTIONS, build
from tests.unit.training import quiet_trainer
from zoo.callbacks import AttentionMaps, ClassReport, GradientFlow, OutOfDistribution, SampleLogger, StopOnNonFinite
from zoo.contracts import PredictiveClassifier, offers
from zoo.datamodules import Digits

#: Runs of the quick tests: something of every kind that computes in float64, and that reduces over ranks.
QUICK = [("GAN of images", "mps"), ("Diffusion", "mps"), ("TransformerLM", "mps")]
QUICK += [("Diffusion of points", "maia"), ("ViTClassifier", "maia")]


class Places(Callback):
    """Keeps the devices of the model in training."""

    def __init__(self) -> None:
        self.seen: set[torch.device] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen |= {p.device for p in pl_module.parameters()}


def callbacks_of(model: LightningModule) -> list[Callback]:
    """What the model can have of the callbacks that compute, drawing as little as possible."""
    added: list[Callback] = [GradientFlow(every_n_steps=1), StopOnNonFinite(every_n_steps=1)]
    if offers(model, PredictiveClassifier):
        added += [ClassReport(), OutOfDistribution(Digits())]
    elif hasattr(model, "sample"):
        if model.tokens:  # whose texts are long
            return added
        added.append(SampleLogger(n=1, every_n_steps=2, animate=False))
    else:
        added.append(AttentionMaps(every_n_steps=2))
    return added


@pytest.fixture
def no_figures(cheap_pictures, monkeypatch):
    for name in ("class_report.plot_confusion", "gradient_flow.plot_gradient_flow", "attention_maps.plot_attention"):
        monkeypatch.setattr(f"zoo.callbacks.{name}", lambda *_: np.zeros((1, 1, 3), dtype=np.uint8))


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind) if (name, kind) in QUICK else pytest.param(name, kind, marks=pytest.mark.slow)
        for name in [*MODELS, *OPTIONS]
        for kind in ("mps", "maia")
    ],
)
def test_every_model_is_trained_and_evaluated_on_a_device_and_all_collectives_are_on_it(name, kind, tmp_path):
    """On "mps" without float64, and without collectives, which it does not have."""
    model, data = build(name, tmp_path)
    places = Places()
    calls = [places, *callbacks_of(model)]
    limits = {f"limit_{split}_batches": 1 for split in ("val", "test", "predict")} | {"limit_train_batches": 2}
    options: dict[str, Any] = {"accelerator": "auto", "default_root_dir": tmp_path, "use_distributed_sampler": False}
    options["inference_mode"] = False  # in which PyTorch does not detach tensors of a subclass
    with stand_in(kind) as place, one_rank(objects_on_device=True) if kind == "maia" else nullcontext():
        trainer = quiet_trainer(
            strategy=OnStandIn(place), max_epochs=1, log_every_n_steps=1, callbacks=calls, **options, **limits
        )
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        (metrics,) = trainer.test(model, datamodule=data, verbose=False)
        model.to(place)
        if hasattr(model, "sample"):
            samples = model.sample(3, **({"max_new_tokens": 4} if model.tokens else {}))
            assert isinstance(samples, DeviceTensor)
        else:
            trainer.predict(model, datamodule=data)
    assert places.seen == {place}
    assert torch.tensor([*metrics.values()]).isfinite().all(), metrics


@pytest.mark.parametrize("planted", ["log", "operation", "float64"])
def test_the_stand_in_refuses_what_a_device_refuses(planted):
    class Planted(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            loss = self.layer(torch.ones(3, 2, device=self.device)).mean()
            if planted == "log":
                self.log("value", loss.cpu(), sync_dist=True)
            elif planted == "operation":
                loss = (loss * torch.ones(2)).sum()
            else:
                loss = loss.double()
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    kind, message = {
        "log": ("maia", "No backend type associated with device type cpu"),
        "operation": ("maia", "Expected all tensors to be on the same device, but found maia:0 and cpu"),
        "float64": ("mps", "Cannot convert a MPS Tensor to float64"),
    }[planted]
    with stand_in(kind) as place, one_rank(objects_on_device=True):
        options: dict[str, Any] = {"accelerator": "auto", "use_distributed_sampler": False}
        trainer = quiet_trainer(strategy=OnStandIn(place), max_steps=1, **options)
        with pytest.raises((RuntimeError, TypeError), match=message):
            trainer.fit(Planted(), torch.utils.data.DataLoader(range(2)))
