"""Every model in every precision of the Trainer: training, evaluation, sampling, and the checkpoint afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

import zoo
from tests.helpers.models import MODELS
from tests.helpers.networks import mlps
from tests.unit.models.test_contract import CASES, digits, points
from tests.unit.training import quiet_trainer
from zoo.contracts import PredictiveClassifier, offers
from zoo.errors import UserError
from zoo.models.precision import in_float32
from zoo.optim import Muon, ScalarAdam
from zoo.registry import find_class
from zoo.testing.runs import Case

DTYPES = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64, "16-true": torch.float16}
#: Options that make a model compute something else: class of the model and arguments, as in `CASES`.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "GAN of images": ("GAN", {"data": digits, "conditional": True, "latent_dim": 4}),
    "GAN with a gradient penalty": (
        "GAN",
        {"data": points, "latent_dim": 4, "loss": "wasserstein", "penalty": "gradient_penalty", **mlps(16)},
    ),
    "Diffusion of points": ("Diffusion", {"data": points, "likelihood_samples": 2, "steps": 2}),
    "ResNetClassifier with all options": (
        "ResNetClassifier",
        {
            **{"data": digits, "depth": 8, "widths": [4, 4, 4], "ema_half_life": 100, "mixup": 0.2, "calibrate": True},
            **{"class_weights": [1.0] * 9 + [2.0], "flip_tta": True, "channels_last": True},
        },
    ),
    "MLPClassifier with all options": (
        "MLPClassifier",
        {
            **{"data": digits, "width": 16, "depth": 2, "batch_norm": True, "max_norm": 2.0, "mc_samples": 2},
            **{"optimizer": partial(ScalarAdam, lr=1e-3)},
        },
    ),
    "MLPClassifier with Muon": ("MLPClassifier", {"data": digits, "width": 16, "optimizer": Muon}),
}


def build(name: str, folder: Path) -> tuple[Any, Any]:
    cls, arguments = OPTIONS[name] if name in OPTIONS else (name, CASES[name](folder))
    arguments = dict(arguments)
    if name == "TransformerLM":
        arguments["data"] = partial(arguments["data"], test_size=0.1)
    data = arguments.pop("data")
    return Case(find_class(cls), data, arguments, name=name).build()


def evaluate(model: Any, data: Any, precision: str) -> dict[str, float]:
    """Tests, samples or predicts a few samples in a precision; returns the metrics."""
    trainer = quiet_trainer(precision=precision, limit_test_batches=1, limit_predict_batches=1)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    if hasattr(model, "sample"):
        samples = model.sample(3, **({"max_new_tokens": 4} if model.tokens else {}))
        assert samples.isfinite().all() and samples.dtype in (torch.float32, torch.float64, torch.int64)
    else:
        trainer.predict(model, datamodule=data)
    return metrics


# In bf16-mixed all models train in the test of their contract.
RUNS = [(name, precision) for name in [*MODELS, *OPTIONS] for precision in ("bf16-true", "64-true")]
RUNS += [(name, "bf16-mixed") for name in OPTIONS]


@pytest.mark.parametrize(("name", "precision"), RUNS)
def test_every_model_trains_and_is_used_in_every_precision(name, precision, tmp_path):
    torch.manual_seed(0)
    model, data = build(name, tmp_path)
    limits = {"limit_train_batches": 2, "limit_val_batches": 1}
    trainer = quiet_trainer(precision=precision, max_epochs=1, log_every_n_steps=1, **limits)
    trainer.fit(model, datamodule=data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()} | evaluate(
        model, data, precision
    )
    assert "val/fd_floor" not in metrics or metrics.pop("val/fd_floor") >= 0
    assert all(torch.tensor(value).isfinite() for value in metrics.values()), metrics
    dtypes = {name.startswith("ema."): p.dtype for name, p in model.named_parameters()}
    assert dtypes[False] == DTYPES[precision]
    assert dtypes.get(True, torch.float32) in (torch.float32, torch.promote_types(DTYPES[precision], torch.float32))
    assert all(m.mean_value.dtype == torch.float32 for m in model.modules() if isinstance(m, MeanMetric))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = zoo.load(tmp_path / "model.ckpt")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    if offers(loaded, PredictiveClassifier):
        x = torch.rand(3, *data.input_shape)
        torch.testing.assert_close(
            loaded.predict(x).probabilities, model.predict(x).probabilities.float(), atol=0.02, rtol=0.05
        )
    elif hasattr(loaded, "sample"):
        loaded.sample(2, **({"max_new_tokens": 4} if loaded.tokens else {}))


@pytest.mark.parametrize("name", [*MODELS, *OPTIONS])
def test_every_model_is_evaluated_in_float16_but_not_trained(name, tmp_path):
    model, data = build(name, tmp_path)
    with pytest.raises(UserError, match=r"trainer\.precision 16-true trains weights in float16 .*: use bf16-true"):
        quiet_trainer(precision="16-true", max_epochs=1).fit(model, datamodule=data)
    model, data = build(name, tmp_path)
    metrics = evaluate(model, data, "16-true")
    assert all(torch.tensor(value).isfinite() for value in metrics.values()), metrics


def test_noise_and_noise_levels_of_a_batch_are_the_same_in_half_precision():
    draws = []
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = build("Diffusion of points", Path())
        model._indices = torch.arange(300)
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            x = torch.zeros(300, *model.input_shape, dtype=torch.float32)
            draws.append([*model.fixed_noise(x), model.stratified_sigmas(300)])
        finally:
            torch.set_default_dtype(torch.float32)
    for first, second in zip(*draws, strict=True):
        assert first.dtype == second.dtype == torch.float32
        assert first.equal(second)


def test_statistics_of_the_data_and_the_temperature_stay_in_float32():
    diffusion, classifier = build("Diffusion of points", Path())[0], build("ViTClassifier", Path())[0]
    diffusion.denoiser.sigma_data.fill_(0.123456)
    classifier.temperature.fill_(1.234567)
    for model in (diffusion, classifier):
        model.to(torch.bfloat16)
        assert next(model.network.parameters()).dtype == torch.bfloat16
    assert diffusion.denoiser.sigma_data.item() == pytest.approx(0.123456, rel=1e-6)
    assert classifier.temperature.item() == pytest.approx(1.234567, rel=1e-6)


def test_a_noise_level_is_embedded_by_the_same_angles_in_every_precision():
    for dtype in (torch.bfloat16, torch.float64):
        model = build("Diffusion of points", Path())[0]
        condition = next(m for m in model.denoiser.modules() if hasattr(m, "frequencies"))
        before = condition.frequencies.clone()
        model.to(dtype)
        assert condition.frequencies.equal(before)


def test_a_half_precision_network_in_float32_has_gradients_and_running_statistics():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(torch.bfloat16)
    wide = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    wide.load_state_dict(network.state_dict())
    x = torch.randn(32, 4)
    outputs = in_float32(network)(x), wide(x)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for half, full in zip(network.parameters(), wide.parameters(), strict=True):
        assert half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad.float(), full.grad, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(network[1].running_mean.float(), wide[1].running_mean, rtol=0.01, atol=1e-3)
    assert in_float32(wide) is wide
