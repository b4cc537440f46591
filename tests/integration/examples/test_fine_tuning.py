"""The example of fine-tuning on a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

import zoo
from zoo import Classifier, MLPClassifier, ResNetClassifier
from zoo.datamodules import Digits

CHECKPOINT = "runs/resnet/version_0/checkpoints/best.ckpt"


@pytest.fixture
def example(enter):
    """The example beside a folder of pictures: the digits 5 to 9, faint, 20 of each."""
    example = enter("fine_tuning")
    x, y = faint("train")
    for digit in range(5):
        folder = Path("my_pictures") / f"digit_{digit + 5}"
        folder.mkdir(parents=True)
        for index, image in enumerate(x[y == digit][:20]):
            Image.fromarray(((image[0] + 1) * 127.5).numpy().astype(np.uint8)).save(folder / f"{index}.png")
    return example


def faint(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits 5 to 9 at half the contrast, as classes 0 to 4."""
    data = Digits()
    data.setup("fit" if split == "train" else "test")
    x, y = data.split(split)
    return (x[y >= 5] - 1) / 2, y[y >= 5] - 5


def pretrain(epochs: int, batches: int | None = None) -> None:
    """Writes a checkpoint of a classifier of all digits."""
    torch.manual_seed(0)
    model = ResNetClassifier((1, 8, 8), 10, ema_half_life=500)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=epochs, limit_train_batches=batches, **options)
    trainer.fit(model, Digits(repeats=5))
    trainer.save_checkpoint(CHECKPOINT)


@pytest.mark.usefixtures("cheap_reports")
def test_a_classifier_of_the_zoo_learns_other_classes_and_loads_by_itself(example, capsys):
    pretrain(epochs=1, batches=2)
    example.run(example.commands[1], "--max_epochs", "1")
    assert "classes: digit_5, digit_6, digit_7, digit_8, digit_9" in capsys.readouterr().out
    model = zoo.load("runs/fine_tuning/version_0/checkpoints/best.ckpt")
    assert isinstance(model, ResNetClassifier) and model.num_classes == 5


@pytest.mark.slow  # it writes 130 MB twice
def test_a_network_of_torchvision_learns_these_classes_and_loads_by_itself(example):
    example.run(example.commands[0], "--max_epochs", "1", "--weights", "none", "--image_size", "16")
    model = zoo.load("runs/fine_tuning/version_0/checkpoints/best.ckpt")
    assert isinstance(model, Classifier) and model.num_classes == 5


@pytest.mark.parametrize("ema", [0, 1000])
def test_all_weights_but_those_of_the_last_layer_are_kept(ema, example):
    from fine_tune import adapt

    pretrained = MLPClassifier((1, 8, 8), 10, width=12, depth=2, ema_half_life=ema)
    model = adapt(pretrained, 3)
    kept, other = (dict(m.network.named_parameters()) for m in (pretrained, model))
    changed = [
        name for name in kept if kept[name].shape != other[name].shape or not torch.equal(kept[name], other[name])
    ]
    assert len(changed) == 2 and other[changed[0]].shape == (3, 12)
    x = torch.randn(2, 1, 8, 8)
    model.eval()
    torch.testing.assert_close(model(x), model.network(x), msg="the moving average begins with the same weights")


@pytest.mark.slow
def test_pretraining_helps_on_few_pictures(example):
    x, y = faint("test")
    accuracy = []
    for version, batches in enumerate([2, None]):
        pretrain(epochs=3, batches=batches)
        example.run(example.commands[1], "--max_epochs", "4")
        model = zoo.load(f"runs/fine_tuning/version_{version}/checkpoints/best.ckpt")
        accuracy.append((model.predictive(x).probabilities.argmax(1) == y).float().mean().item())
    assert accuracy[1] > 0.7, accuracy
    assert accuracy[1] > accuracy[0] + 0.05, "over 3 seeds the gain was 0.06 to 0.26"
