"""Checks of a run before anything is written."""

from __future__ import annotations

import socket

import pytest
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy

from tests.unit.training import quiet_trainer
from zoo import GAN, MLPClassifier, TransformerLM
from zoo.cli.preflight import check_match, check_port, check_precision_option, check_trainer_options
from zoo.datamodules import Digits, Text
from zoo.errors import UserError
from zoo.tokenizers import CharacterTokenizer


def options(**given) -> Namespace:
    """Arguments of the Trainer as the parser returns them."""
    return Namespace(**({"val_check_interval": 1.0, "accumulate_grad_batches": 1, "gradient_clip_val": None} | given))


def language_model() -> TransformerLM:
    return TransformerLM((8,), 2, CharacterTokenizer("ab").description, layers=1, width=16, heads=2)


@pytest.mark.parametrize(
    ("name", "value"), [("accumulate_grad_batches", 2), ("gradient_clip_val", 1.0), ("gradient_clip_val", 0.0)]
)
def test_trainer_options_that_need_automatic_optimization_are_refused_for_a_gan(name, value):
    with pytest.raises(UserError) as error:
        check_trainer_options(options(**{name: value}), GAN((1, 8, 8)))
    expected = f"trainer.{name} does not work with GAN, which optimizes manually; use --model.{name}"
    assert str(error.value) == expected
    check_trainer_options(options(**{name: value}), MLPClassifier((1, 8, 8), 10))
    assert name in GAN((1, 8, 8)).hparams, "the option that the message recommends"


def test_default_trainer_options_are_accepted_for_every_model():
    for model in (GAN((1, 8, 8)), MLPClassifier((1, 8, 8), 10)):
        check_trainer_options(options(accumulate_grad_batches=None, log_every_n_steps=0), model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_check_interval": 0}, "val_check_interval is 0; to leave out validation, use --trainer.limit_val_batch"),
        ({"log_every_n_steps": -1}, "trainer.log_every_n_steps is -1; it must be 0 or more"),
        ({"reload_dataloaders_every_n_epochs": -2}, "trainer.reload_dataloaders_every_n_epochs is -2"),
        ({"num_nodes": -3}, "trainer.num_nodes is -3"),
    ],
)
def test_values_that_the_trainer_fails_on_later_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        check_trainer_options(options(**given), MLPClassifier((1, 8, 8), 10))


def test_a_precision_in_which_no_model_trains_is_refused_for_training_only():
    with pytest.raises(
        UserError, match=r"trainer\.precision 16-true trains weights in float16 .*: use bf16-true, or 16-m"
    ):
        check_precision_option("fit", "16-true")
    check_precision_option("test", "16-true")
    for precision in (None, 16, 64, "32", "bf16", "bf16-true", "64-true"):
        check_precision_option("fit", precision)


def test_the_package_that_a_precision_needs_is_named(monkeypatch):
    for precision in ("transformer-engine", "transformer-engine-float16"):
        monkeypatch.setattr("zoo.cli.preflight.find_spec", lambda name: None)
        with pytest.raises(
            UserError, match=rf"precision {precision} needs NVIDIA's transformer_engine, which is not inst"
        ):
            check_precision_option("validate", precision)
        monkeypatch.setattr("zoo.cli.preflight.find_spec", lambda name: name)
        check_precision_option("validate", precision)


def test_models_of_tokens_and_data_of_images_are_refused_together(tmp_path):
    (tmp_path / "text.txt").write_text("ab" * 100)
    text, images = Text(str(tmp_path / "text.txt")), Digits()
    with pytest.raises(UserError, match="TransformerLM is for tokens, and Digits has images or points"):
        check_match(language_model(), images)
    with pytest.raises(UserError, match="GAN is for images or points, and Text has tokens"):
        check_match(GAN((1, 8, 8)), text)
    check_match(language_model(), text)
    check_match(GAN((1, 8, 8)), images)
    check_match(LightningModule(), text)  # a foreign model does not declare what it is for


def test_a_foreign_model_that_is_conditional_on_one_class_is_refused():
    model = LightningModule()
    model.conditional, model.num_classes = True, 1
    with pytest.raises(UserError, match="conditional is true, but num_classes is 1"):
        check_match(model, Digits())
    model.num_classes = 2
    check_match(model, Digits())


@pytest.fixture
def port_in_use():
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(("port", "reason"), [(None, "Address already in use"), ("http", "not a port number")])
def test_a_port_that_cannot_be_bound_is_refused(port, reason, port_in_use, monkeypatch):
    port = port or str(port_in_use)
    trainer = quiet_trainer(devices=2, strategy=DDPStrategy())
    check_port(trainer)  # without MASTER_PORT, Lightning chooses a free one
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match=rf"cannot meet at MASTER_PORT {port} \({reason}\); unset MASTER_PORT"):
        check_port(trainer)
    check_port(quiet_trainer())  # one process needs no port
    monkeypatch.setenv("NODE_RANK", "1")
    check_port(trainer)  # rank 0 has checked it
