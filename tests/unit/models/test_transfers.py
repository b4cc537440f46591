"""What passes between CPU and device in a training step, for every model in the registry.

A value that is read from a GPU makes the CPU wait for everything that it has started there. The models train on the
device `meta`, on which each read is counted; see `tests.helpers.meta`.
"""

from functools import partial
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.helpers.meta import QUIET, fit_without_data
from tests.helpers.networks import mlps, unet
from tests.unit.models.test_contract import CASES, digits
from zoo import GAN, Diffusion, MLPClassifier, ResNetClassifier
from zoo.callbacks import StopOnNonFinite
from zoo.metrics import TemperatureFit
from zoo.models import DiT
from zoo.registry import find_class
from zoo.testing.runs import Case, quiet

WINDOW = 2  # steps between two that log
#: Models with options that change what happens in a step.
FURTHER = {
    "ResNet with EMA and mixup": (
        ResNetClassifier,
        {"depth": 8, "widths": [4] * 3, "ema_half_life": 100, "mixup": 0.2},
    ),
    "GAN by class": (GAN, {"conditional": True, "latent_dim": 4, "generator": "mlp", "discriminator": "mlp"}),
    "DiT by class": (Diffusion, {"conditional": True, "network": partial(DiT, layers=1, width=16, heads=2)}),
}
ADAM = partial(torch.optim.AdamW, lr=1e-3, foreach=True)  # fused kernels do not exist for the device


def without_fused_kernels(cls: type) -> dict:
    return dict.fromkeys(["optimizer_g", "optimizer_d"] if cls is GAN else ["optimizer"], ADAM)


def build(name, folder, fused=False):
    """A model and its data; with its own optimizer if fused kernels exist."""
    if name in FURTHER:
        cls, arguments = FURTHER[name]
        arguments = {"data": digits, **arguments}
    else:
        cls, arguments = find_class(name), CASES[name](folder)
    data = arguments.pop("data")
    with quiet():
        return Case(cls, data, arguments | ({} if fused else without_fused_kernels(cls))).build()


@pytest.mark.parametrize("name", [*CASES, *FURTHER])
def test_a_step_reads_nothing_from_the_device_unless_it_logs(name, tmp_path):
    model, data = build(name, tmp_path)
    clip = {"gradient_clip_val": 1.0} if model.automatic_optimization else {}
    steps = fit_without_data(model, data, 2 * WINDOW, log_every_n_steps=WINDOW, **clip).steps
    reads = [step.reads.total() for step in steps]
    # In the first step the range of the samples is checked.
    assert reads[1:] == [1, 0, 1]
    batch = [tuple(part.shape) for part in next(iter(data.train_dataloader()))]
    for step in steps[1:]:
        drawn = [(len(step.uploads[0]),)] if getattr(model, "mixup", 0) else []
        assert step.uploads[: len(batch)] == batch
        assert len(step.uploads) == len(batch) + len(drawn), "only the batch is copied to the device"


def test_the_search_for_non_finite_numbers_reads_from_the_device_only_when_it_is_due(tmp_path):
    model, data = build("MLPClassifier", tmp_path)
    steps = fit_without_data(model, data, 4, log_every_n_steps=0, callbacks=[StopOnNonFinite(every_n_steps=4)]).steps
    assert [step.reads.total() for step in steps[1:3]] == [0, 0]
    assert steps[3].reads.total() > 0


VALIDATED = {
    "Diffusion": (Diffusion, {"network": unet(8), "steps": 2, "solver": "deis"}),
    "GAN": (GAN, {"latent_dim": 4, **mlps(8)}),
    "classifier": (MLPClassifier, {"width": 8, "depth": 1, "calibrate": True}),
}


@pytest.mark.parametrize("name", VALIDATED)
def test_validation_reads_nothing_from_the_device_before_its_end_and_copies_noise_and_data_once(name):
    cls, arguments = VALIDATED[name]
    with quiet():
        model, data = Case(cls, digits, arguments | without_fused_kernels(cls)).build()
        # The temperature is fitted by a loop until it changes no more.
        with mock.patch("zoo.models.classifier.TemperatureScaling.compute", return_value=TemperatureFit(1.0, 1.0, 1.0)):
            run = fit_without_data(model, data, 1, max_epochs=3, limit_val_batches=1)
    assert [step.reads.total() for step in run.validation] == [0] * 3
    first, *later = (len(step.uploads) for step in run.validation)
    # Noise; for a diffusion model also noise of the loss, and training data, their weights and indices.
    always = 2 if cls is Diffusion else 0  # noise levels, indices
    assert later == [always] * 2
    assert first == always + {GAN: 1, Diffusion: 4}.get(cls, 0)


class Strict(Callback):
    """Makes waiting for the GPU an error within the steps that do not log, from the second on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        logs = (batch_idx + 1) % trainer.log_every_n_steps == 0
        torch.cuda.set_sync_debug_mode("error" if batch_idx and not logs else "default")

    def on_train_batch_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")

    on_exception = on_train_batch_end


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", [*CASES, *FURTHER])
def test_a_step_does_not_wait_for_a_gpu(name, precision, tmp_path):
    model, data = build(name, tmp_path, fused=True)
    limits = {"max_steps": 6, "limit_val_batches": 0, "log_every_n_steps": 3}
    with quiet():
        trainer = Trainer(accelerator="gpu", devices=1, precision=precision, callbacks=[Strict()], **QUIET, **limits)
        trainer.fit(model, datamodule=data)
    assert trainer.global_step == 6
