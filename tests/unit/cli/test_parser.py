"""The parser: values of types that foreign classes declare."""

from __future__ import annotations

import sys

import pytest
import torch
from lightning.pytorch import LightningDataModule

from zoo.cli.fit import ZooCLI
from zoo.cli.parser import OneLineParser
from zoo.datamodules import Augment, PerSample
from zoo.errors import UserError

ROTATION = "torchvision.transforms.v2.RandomRotation"


@pytest.fixture
def parser() -> OneLineParser:
    parser = OneLineParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    return parser


def augment_of(parser: OneLineParser, args: list[str]):
    """The augmentation of a data module, built from a configuration that is written and read once."""
    config = parser.parse_args(["--data=zoo.datamodules.Digits", *args])
    text = parser.dump(config, skip_unset=False)
    assert parser.dump(parser.parse_string(text), skip_unset=False) == text
    return parser.instantiate(parser.parse_string(text)).data.augment


def test_augment_has_a_short_form(parser):
    for args in (
        ["--data.augment.crop=2", "--data.augment.fill=1"],
        ["--data.augment={crop: 2, fill: 1}"],
        ["--data.augment=Augment", "--data.augment.crop=2", "--data.augment.fill=1"],
        ["--data.augment={class_path: Augment, init_args: {crop: 2, fill: 1}}"],
    ):
        assert augment_of(parser, args) == Augment(crop=2, fill=1.0)
    assert augment_of(parser, []) is None


@pytest.mark.parametrize(
    "args",
    [
        [f"--data.augment={ROTATION}", "--data.augment.degrees=10"],
        [f"--data.augment={{class_path: {ROTATION}, init_args: {{degrees: 10}}}}"],
        [f"--data.augment={ROTATION}", "--data.augment.degrees=[-10, 10]"],
    ],
)
def test_a_transform_of_torchvision_is_an_augmentation(parser, args):
    transform = augment_of(parser, args)
    assert type(transform).__name__ == "RandomRotation"
    assert list(transform.degrees) == [-10, 10]


@pytest.mark.parametrize("option", ["--data={}", "--config={}"])
def test_aliases_that_stand_for_billions_of_values_are_not_expanded(parser, option, tmp_path):
    lines = ["a0: &a0 [1]", *(f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 9)}]" for k in range(20))]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "class_path: Digits\ninit_args: {batch_size: *a20}\n"]))
    parser.add_argument("--config", action="config")
    with pytest.raises(UserError, match=r"has more than 10,000 values, counting each alias"):
        parser.parse_args([option.format(tmp_path / "bomb.yaml")])


def test_a_recipe_is_changed_on_the_command_line(parser):
    ours = "--data.augment={flip: true, crop: 2}"
    assert augment_of(parser, [ours, "--data.augment.flip=false"]) == Augment(crop=2)
    assert augment_of(parser, [ours, "--data.augment=null"]) is None
    other = augment_of(parser, [ours, f"--data.augment={ROTATION}", "--data.augment.degrees=10"])
    assert list(other.degrees) == [-10, 10]
    assert augment_of(parser, [f"--data.augment={ROTATION}", "--data.augment=Augment", "--data.augment.crop=2"]) == (
        Augment(crop=2)
    )


def test_transforms_are_composed_and_drawn_per_sample(parser):
    one = f"{{class_path: {ROTATION}, init_args: {{degrees: 7.5}}}}"
    transform = augment_of(
        parser,
        [f"--data.augment={{class_path: torchvision.transforms.v2.Compose, init_args: {{transforms: [{one}]}}}}"],
    )
    assert list(transform.transforms[0].degrees) == [-7.5, 7.5]
    wrapped = augment_of(parser, ["--data.augment=zoo.datamodules.PerSample", f"--data.augment.transform={one}"])
    assert isinstance(wrapped, PerSample)
    assert wrapped(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)).shape == (3, 1, 4, 4)


def test_a_function_is_an_augmentation(parser):
    name = "torchvision.transforms.v2.functional.invert"
    assert augment_of(parser, [f"--data.augment={name}"])(torch.tensor([255], dtype=torch.uint8)) == 0


def test_only_the_parser_of_the_command_that_is_typed_is_built(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py", "validate", "--config=gan.yaml"])
    assert ZooCLI.subcommands() == {"validate": {"model", "dataloaders", "datamodule", "weights_only"}}
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert set(ZooCLI.subcommands()) == {"fit", "validate", "test", "predict"}
