"""Runs whose loss, gradients or parameters become NaN or Inf: one line, exit code 1, and the last good checkpoint."""

import math
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.helpers.command import MLP_RUN, TINY, error_line
from tests.helpers.models import MODELS, tiny_arguments
from tests.helpers.networks import mlps, unet
from zoo import GAN, Diffusion, MLPClassifier, TransformerLM
from zoo.callbacks import StopOnNonFinite
from zoo.callbacks.non_finite import largest_values
from zoo.cli.edit import edit
from zoo.cli.sample import sample_images
from zoo.cli.text import sample_text
from zoo.errors import NonFiniteError
from zoo.hub.predicting import write_predictions
from zoo.models.generative import check_samples
from zoo.pictures.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


QUICK = ("GAN", "MLPClassifier")  # manual and automatic optimization


def optimizer(name: str, rate: float) -> list[str]:
    which = ("_g", "_d") if name == "GAN" else ("",)
    return [f"--model.optimizer{w}={{class_path: torch.optim.SGD, init_args: {{lr: {rate}}}}}" for w in which]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_every_model_stops_when_its_loss_is_not_finite(name, tmp_path, capsys):
    line = error_line(capsys, 1, "fit", *tiny_arguments(name, tmp_path), *TINY, *optimizer(name, 1e30))
    assert re.search(
        r"(loss( \d of the batch)? became (nan|inf) at step [12];|parameter \S+ is (nan|inf) at step 2 )", line
    )
    assert ("--model.gradient_clip_val" if name == "GAN" else "--trainer.gradient_clip_val") in line
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("callback", "options", "kept"),
    [
        ("BestAndLastCheckpoint", ["monitor=val/loss"], {"best.ckpt": 3, "last.ckpt": 3}),
        (
            "ModelCheckpoint",
            ["every_n_train_steps=1", "save_top_k=-1"],
            {f"epoch=0-step={k}.ckpt": k for k in range(1, 6)},
        ),
    ],
)
def test_the_last_good_checkpoint_stays_and_is_named(callback, options, kept, capsys):
    """The learning rate explodes after the first validation; the next check is that before a checkpoint."""
    args = [*MLP_RUN, "--trainer.log_every_n_steps=50", f"--trainer.callbacks={callback}"]
    args += [f"--trainer.callbacks.{option}" for option in options]
    args += [*optimizer("", 0.01), "--model.lr_scheduler={class_path: tests.integration.cli.test_non_finite.Exploding}"]
    line = error_line(capsys, 1, *args)
    assert re.search(
        r"(became|is) (nan|inf) at step [5-7].*; the last good checkpoint is \S*checkpoints/\S+\.ckpt", line
    )
    found = {path.name: torch.load(path, weights_only=True) for path in Path("runs").rglob("*.ckpt")}
    assert {name: checkpoint["global_step"] for name, checkpoint in found.items()} == kept
    for checkpoint in found.values():
        assert all(v.isfinite().all() for v in checkpoint["state_dict"].values() if isinstance(v, Tensor))


class Exploding(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer, lambda step: 1.0 if step < 4 else 1e35)


class Watched(LightningModule):
    """Two layers; the loss, a gradient or a parameter becomes NaN or Inf at the third step."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.second, self.fault = nn.Linear(2, 2), nn.Linear(2, 1), fault

    def training_step(self, batch, batch_idx):
        now = batch_idx == 2
        hidden = self.first(batch[0])
        if now and self.fault == "gradient":
            # The derivative of the root at 0 is infinite, and that of the square 0: their product is NaN.
            hidden = hidden + (hidden * 0).square().sum(1, keepdim=True).sqrt()
        loss = self.second(hidden).square().mean()
        return loss * (torch.nan if now and self.fault == "loss" else 1)

    def optimizer_step(self, epoch, batch_idx, *args):
        super().optimizer_step(epoch, batch_idx, *args)
        if batch_idx == 2 and self.fault == "parameter":
            self.second.bias.data.fill_(torch.inf)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def train(model: LightningModule, stop: StopOnNonFinite, period: int, **options) -> None:
    batches = DataLoader([(torch.ones(2),)] * 8, batch_size=1)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[stop],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=period, **options,
    )  # fmt: skip
    trainer.fit(model, batches)


@pytest.mark.parametrize(
    ("fault", "period", "expected"),
    [
        ("loss", 1, "the loss became nan at step 3"),
        ("loss", 50, "the loss became nan at step 3"),
        ("loss", 4, "the loss became nan at step 3"),
        ("gradient", 1, r"the gradient of first\.weight became nan at step 3"),
        ("parameter", 1, r"the parameter second\.bias became inf at step 3"),
        ("gradient", 4, "the loss became nan at step 4"),
        ("parameter", 8, "the loss became inf at step 4"),
    ],
)
def test_the_first_non_finite_tensor_is_named_with_its_step(fault, period, expected):
    with pytest.raises(NonFiniteError, match=expected):
        train(Watched(fault), StopOnNonFinite(), period)


def test_a_finite_run_goes_on_and_so_does_one_without_checks():
    train(Watched("none"), StopOnNonFinite(), 1)
    train(Watched("loss"), StopOnNonFinite(every_n_steps=0), 1)


def test_losses_are_checked_together_and_not_one_by_one(monkeypatch):
    """A check waits for the device; between two checks nothing does."""
    checks = []
    original = StopOnNonFinite._check
    monkeypatch.setattr(StopOnNonFinite, "_check", lambda self, *a: (checks.append(self._step), original(self, *a)))
    train(Watched("none"), StopOnNonFinite(), 4)
    assert checks == [4, 8, 8], "after every fourth batch, and at the end"


def test_early_stopping_does_not_hide_a_metric_that_is_nan(capsys):
    args = [*MLP_RUN, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    args += [*optimizer("", 1e30), "--trainer.log_every_n_steps=50"]
    assert "the loss became nan at step 2" in error_line(capsys, 1, *args)


def broken(model: LightningModule) -> LightningModule:
    """The model with weights that are NaN."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    return model.eval()


IMAGES = {"input_shape": (1, 8, 8), "num_classes": 10}
USES = {
    "sample": lambda: sample_images(broken(GAN(**IMAGES, **mlps(8))), {}, n=3, out="a.npz"),
    "sample, an animation": lambda: sample_images(broken(GAN(**IMAGES, **mlps(8))), {}, n=3, out="a.gif"),
    "sample, an interpolation": lambda: sample_images(broken(GAN(**IMAGES, **mlps(8))), {}, n=3, interpolate=3),
    "sample, a text": lambda: sample_text(
        broken(TransformerLM((8,), 3, "characters:abc", layers=1, width=8, heads=2)), {}, out="a.txt"
    ),
    "edit": lambda: edit("model.ckpt", "a.png", "denoise", sigma=1, steps=2),
    "predict": lambda: write_predictions(
        broken(MLPClassifier(**IMAGES, width=8, depth=1)), [Path("a.png")], Path("a.csv")
    ),
}


@pytest.mark.parametrize("use", USES)
def test_a_model_of_nan_writes_nothing(use, monkeypatch):
    Image.new("L", (8, 8)).save("a.png")
    diffusion = broken(Diffusion(**IMAGES, network=unet(8)))
    monkeypatch.setattr("zoo.cli.edit.load_model_with_config", lambda *_: diffusion)
    monkeypatch.setattr("zoo.hub.predicting.preprocessing_of", lambda model: Preprocessing((8, 8), 1))
    with pytest.raises(NonFiniteError, match=r"(are|predicts) (NaN|NaN or Inf).*take another checkpoint"):
        USES[use]()
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_only_samples_that_are_finite_are_written():
    with pytest.raises(NonFiniteError, match="1 of 3 samples of GAN are NaN or Inf"):
        check_samples(torch.tensor([[0.0, 1.0], [torch.inf, 0.0], [1.0, -1.0]]), "GAN")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -3.0, 0.0])
def test_the_largest_value_of_a_tensor_is_its_maximum_norm(value):
    tensors = [torch.full((7, 5), 0.5), torch.tensor(-2.0), torch.zeros(3, dtype=torch.bfloat16)]
    tensors[0][3, 2] = value
    expected = torch._foreach_norm(tensors, ord=math.inf)
    found = largest_values(tensors)
    assert [x.shape for x in found] == [x.shape for x in expected]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    sparse = torch.eye(3).to_sparse()
    assert largest_values([sparse.coalesce().values()])[0] == 1
