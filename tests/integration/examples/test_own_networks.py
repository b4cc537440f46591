"""The example of a GAN with networks of one's own, from Python and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.command import TINY


@pytest.mark.usefixtures("cheap_reports")
def test_the_commands_train_these_networks_and_draw_from_them(enter, capsys):
    example = enter("own_networks")
    script, fit, sample = example.commands
    example.run(script, "--max_steps", "4", "--width", "6")
    assert "sevens (16, 1, 8, 8)" in capsys.readouterr().out
    state = torch.load("runs/own_networks/version_0/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert state["generator.coarse.0.weight"].shape == (6 * 4 * 4, 32)

    example.run(fit, *TINY, "--trainer.max_steps=3", "--data.repeats=1")
    config = yaml.safe_load(Path("runs/gan_digits/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["generator"] == {
        "class_path": "own_networks.Generator",
        "init_args": {"width": 64},
    }
    example.run(sample)
    assert Path("samples.png").is_file()


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("classes", [0, 5])
def test_the_networks_fit_images_of_any_power_of_two(size, classes, enter):
    enter("own_networks")
    from own_networks import Discriminator, Generator

    shape, labels = (3, size, size), torch.tensor([1, 4]) if classes else None
    images = Generator(shape, 7, classes, width=4)(torch.randn(2, 7), labels)
    assert images.shape == (2, *shape) and images.abs().max() <= 1
    logits = Discriminator(shape, classes, width=4)(images, labels)
    assert logits.shape == (2,)
    if classes:
        other = Discriminator(shape, classes, width=4)
        assert not torch.equal(other(images, labels), other(images, labels - 1)), "the class matters"


def test_other_images_are_refused_by_name(enter):
    enter("own_networks")
    from own_networks import Generator

    for shape in ((1, 12, 12), (1, 8, 16), (2,)):
        with pytest.raises(ValueError, match="sides of 4, 8, 16"):
            Generator(shape, 7, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_pictures")
def test_digits_get_better(enter):
    enter("own_networks")
    from lightning.pytorch import Trainer

    import train
    from zoo.datamodules import Digits

    torch.manual_seed(0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    measured = [
        trainer.validate(train.main(["--max_steps", str(steps), "--width", "16"]), Digits(), verbose=False)[0]["val/fd"]
        for steps in (1, 200)
    ]
    assert measured[1] < measured[0] / 5, measured
