"""The example of fine-tuning on a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from zoo import MLPClassifier, ResNetClassifier
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits

CHECKPOINT = "runs/resnet/version_0/checkpoints/best.ckpt"


@pytest.fixture
def example(enter):
    """The example beside a folder of pictures: the digits 5 to 9, inverted, 20 of each."""
    example = enter("fine_tuning")
    data = Digits()
    data.setup("test")
    x, y = data.split("test")
    for digit in range(5, 10):
        folder = Path("my_pictures") / f"digit_{digit}"
        folder.mkdir(parents=True)
        for index, image in enumerate(x[y == digit][:20]):
            pixels = ((1 - image[0]) * 127.5).numpy().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return example


def pretrain(epochs: int) -> None:
    """Writes a checkpoint of a classifier of all digits."""
    model = ResNetClassifier((1, 8, 8), 10, ema_half_life=500)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=epochs, limit_train_batches=None if epochs > 1 else 2, **options)
    trainer.fit(model, Digits(repeats=5))
    trainer.save_checkpoint(CHECKPOINT)


@pytest.mark.usefixtures("cheap_reports")
def test_the_commands_train_classifiers_that_load_by_themselves(example, capsys):
    pretrain(epochs=1)
    of_torchvision, of_the_zoo = example.commands
    example.run(of_torchvision, "--max_epochs", "1", "--weights", "none", "--image_size", "16")
    example.run(of_the_zoo, "--max_epochs", "1")
    assert "classes: digit_5, digit_6, digit_7, digit_8, digit_9" in capsys.readouterr().out
    for version, name in enumerate(["Classifier", "ResNetClassifier"]):
        model = load_model(f"runs/fine_tuning/version_{version}/checkpoints/best.ckpt")
        assert type(model).__name__ == name and model.num_classes == 5


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
    pretrain(epochs=3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    import fine_tune
    from zoo.datamodules import ImageFolder

    data = ImageFolder("my_pictures", 8, 1)
    fine_tune.main(["--root", "my_pictures", "--ckpt_path", CHECKPOINT, "--max_epochs", "10"])
    tuned = load_model("runs/fine_tuning/version_0/checkpoints/best.ckpt")
    untrained = fine_tune.adapt(load_model(CHECKPOINT), 5)
    scores = [trainer.test(model, data, verbose=False)[0]["test/acc"] for model in (untrained, tuned)]
    assert scores[1] > 0.7 > scores[0] + 0.2
