"""The contract of the models, for every model in the registry: the checks that plugins run as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import MODELS, teacher_checkpoint
from tests.helpers.networks import mlps, unet
from zoo.datamodules import Digits, Points, Sequences, Text
from zoo.models import PooledResNet
from zoo.registry import find_class
from zoo.testing import check_model

TRANSFORMER = {"layers": 1, "width": 16, "heads": 2}
#: 101 validation samples: a prime, so that no number of ranks divides them.
digits = partial(Digits, batch_size=32, val_size=101)
points = partial(Points, "gaussians", num_train=1000, num_test=101, val_size=101, batch_size=32)
sequences = partial(Sequences, digits=4, num_train=1000, num_test=101, val_size=101, batch_size=32)


def text(folder: Path) -> Callable[[], Text]:
    path = folder / "text.txt"
    path.write_text(" ".join(str(number**2) for number in range(1000)))
    return partial(Text, str(path), "characters", context_length=8, batch_size=8)


# Arguments of `check_model`, from a folder for files that they need.
CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ConsistencyModel": lambda folder: {"data": digits, "teacher": teacher_checkpoint(folder)},
    "Diffusion": lambda _: {"data": digits, "network": unet(16), "steps": 2, "conditional": True},
    "GAN": lambda _: {"data": points, "latent_dim": 4, **mlps(16)},
    "MLPClassifier": lambda _: {"data": digits, "width": 16, "depth": 2},
    "ResNetClassifier": lambda _: {"data": digits, "depth": 8, "widths": [4, 4, 4]},
    "Classifier": lambda _: {"data": digits, "network": partial(PooledResNet, widths=[4, 4, 4])},
    "Seq2Seq": lambda _: {"data": sequences, **TRANSFORMER},
    "TransformerLM": lambda folder: {"data": text(folder), **TRANSFORMER},
    "ViTClassifier": lambda _: {"data": digits, **TRANSFORMER},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_the_contract(name, tmp_path):
    if name not in CASES:
        pytest.fail(f"{name} is in the registry but has no arguments for check_model: add an entry to CASES")
    check_model(find_class(name), **CASES[name](tmp_path))


def test_a_conditional_gan_of_images_keeps_the_contract():
    check_model(find_class("GAN"), digits, checks=["training", "sampling"], conditional=True, latent_dim=4, **mlps(16))
