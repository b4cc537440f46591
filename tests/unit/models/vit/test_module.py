"""The Vision Transformer as a classifier."""

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.unit.training import quiet_trainer
from zoo import ViTClassifier
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models.classifier import Classifier


def test_it_learns_digits_as_a_classifier_and_its_checkpoint_loads(tmp_path):
    seed_everything(0, verbose=False)
    model = ViTClassifier(
        (1, 8, 8), 10, patch_size=4, layers=1, width=32, heads=4, ema_half_life=1000,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )  # fmt: skip
    trainer = quiet_trainer(max_steps=150, limit_val_batches=0)
    trainer.fit(model, Digits(batch_size=64, repeats=20))
    assert quiet_trainer().validate(model, Digits(), verbose=False)[0]["val/acc"] > 0.92
    assert isinstance(model, Classifier)
    trainer.save_checkpoint(tmp_path / "vit.ckpt")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(load_model(str(tmp_path / "vit.ckpt"))(x), model.eval()(x))


def test_an_untrained_model_predicts_equal_probabilities():
    model = ViTClassifier((3, 32, 32), 7, layers=1, width=32)
    torch.testing.assert_close(model(torch.randn(2, 3, 32, 32)).softmax(1), torch.full((2, 7), 1 / 7))


def test_the_number_of_parameters_is_the_sum_over_its_blocks():
    model = ViTClassifier((1, 28, 28), 10, patch_size=4, layers=6, width=96, heads=3)
    block = 12 * 96**2 + 9 * 96 + 4 * 96  # matrices, their biases, two norms
    expected = 6 * block + 2 * 96 + (16 + 1) * 96 + (96 + 1) * 10
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size 3 does not divide images of 8x8 pixels"),
        ({"width": 30}, "width is 30; it must be a multiple of 4 and of the 4 heads"),
        ({"heads": 0}, "heads is 0; it must be at least 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"norm": "x"}, "norm is 'x'; choose one of pre, post"),
        ({"input_shape": (12,)}, r"takes images \(C, H, W\), not samples of the shape \(12,\)"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ViTClassifier(**({"input_shape": (1, 8, 8), "num_classes": 10} | options))
