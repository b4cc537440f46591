"""The last lines of `fit`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from tests.helpers.networks import mlps
from tests.unit.training import quiet_trainer
from zoo import GAN, MLPClassifier
from zoo.callbacks import BestAndLastCheckpoint
from zoo.cli.summary import further_commands, next_commands, print_summary
from zoo.datamodules import Digits


@pytest.fixture
def lines(tmp_path, monkeypatch, caplog):
    """The lines that are printed, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [caplog.handler])
    return lambda: "\n".join(caplog.messages)


def fit(patience: int, model=None, lr: float = 0.0, batch_size: int = 200, monitor: str = "val/loss", **options):
    """Trains in the folder `run`, by default with a learning rate of zero, so that the metric never improves."""
    mode = "max" if monitor.endswith("acc") else "min"
    callbacks: list[Callback] = [
        BestAndLastCheckpoint(monitor, mode),
        EarlyStopping(monitor, mode=mode, patience=patience, check_on_train_epoch_end=False),
    ]
    trainer = quiet_trainer(
        callbacks=callbacks, logger=CSVLogger(".", name="", version="run"), enable_checkpointing=True, **options
    )
    # Without batch norm, whose statistics change at a learning rate of zero too.
    model = model or MLPClassifier(
        (1, 8, 8), 10, 16, 1, batch_norm=False, optimizer=lambda p: torch.optim.SGD(p, lr), lr_scheduler=None
    )
    trainer.fit(model, datamodule=Digits(batch_size=batch_size))
    print_summary(trainer, model)
    return trainer


def test_an_early_stopped_run_reports_when_and_why_and_its_best_checkpoint(lines):
    fit(patience=2)
    assert "Run finished after 18 steps; everything is in run" in lines()
    assert "stopped early at step 18, in epoch 3: val/loss had not fallen in 2 validations" in lines()
    path = "run/checkpoints/best.ckpt"
    best = re.search(rf"best val/loss: (\S+) after epoch 1, in {re.escape(path)}", lines())
    assert best
    assert torch.load(path, weights_only=True)["epoch"] == 0
    assert f"Next: zoo test --ckpt_path {path}" in lines()
    assert f"Next: zoo predict --ckpt_path {path} --images FOLDER" in lines()
    model = MLPClassifier.load_from_checkpoint(path, weights_only=True)
    (metrics,) = quiet_trainer().validate(model, datamodule=Digits(), verbose=False)
    assert metrics["val/loss"] == pytest.approx(float(best[1]), rel=1e-3)


def test_a_stop_by_a_metric_to_maximize_says_that_it_had_not_risen(lines):
    fit(patience=1, monitor="val/acc")
    assert "stopped early at step 12, in epoch 2: val/acc had not risen in 1 validation" in lines()


def test_early_stopping_within_an_epoch_reports_that_epoch(lines):
    fit(patience=1, batch_size=100, val_check_interval=4)
    assert "stopped early at step 8, in epoch 1: val/loss had not fallen in 1 validation" in lines()


def test_a_run_that_is_not_stopped_early_reports_when_the_metric_was_best(lines):
    fit(patience=5, lr=0.5, max_epochs=2)
    assert "not stopped early: val/loss was best at the end" in lines()
    assert re.search(r"best val/loss: \S+ after epoch 2, in run/checkpoints/best\.ckpt", lines())


def test_a_run_that_ended_before_its_first_validation_has_no_best_metric(lines):
    fit(patience=5, max_steps=1)
    assert "Run finished after 1 steps" in lines()
    assert "best val/loss:" not in lines()
    assert "not stopped early: val/loss was not measured" in lines()
    assert "Next: zoo test --ckpt_path run/checkpoints/last.ckpt" in lines()


def test_a_generative_model_is_followed_by_the_command_sample_and_its_images(lines):
    Path("run/samples").mkdir(parents=True)
    Path("run/curves.png").touch()
    Path("run/report.html").touch()
    fit(5, GAN((1, 8, 8), **mlps(16), latent_dim=4), monitor="val/fd", max_steps=1)
    assert "to look at: run/report.html, run/samples, run/curves.png" in lines()
    assert "Next: zoo sample --ckpt_path run/checkpoints/last.ckpt --n 64" in lines()


def test_a_conditional_model_is_followed_by_the_command_that_draws_every_class(lines):
    fit(5, GAN((1, 8, 8), 10, conditional=True, **mlps(16), latent_dim=4), monitor="val/fd", max_steps=1)
    assert "Next: zoo sample --ckpt_path run/checkpoints/last.ckpt --n 8 --per_class true" in lines()
    assert "zoo test" not in lines()


def test_the_report_has_further_commands_and_each_of_them_once():
    for model in (GAN((1, 8, 8), **mlps(16), latent_dim=4), MLPClassifier((1, 8, 8), 10, 16, 1)):
        words = [command.words.split()[0] for command in (*next_commands(model), *further_commands(model))]
        assert set(words) >= {"test", "validate", "export", "fit", "report"}
        assert words.count("test") == 1
        assert ("sample" in words) == isinstance(model, GAN)


def test_fast_dev_run_prints_nothing(lines):
    fit(patience=1, fast_dev_run=True)
    assert "Run finished" not in lines()
