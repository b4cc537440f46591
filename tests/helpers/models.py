"""A tiny run of every model in the registry, for tests that hold for all of them.

@pytest.mark.parametrize("name", MODELS)
def test_it_trains(name, tmp_path):
    main(["fit", *tiny_arguments(name, tmp_path), *TINY])
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.checkpoints import save_untrained
from tests.helpers.networks import unet
from zoo import Diffusion
from zoo.datamodules import Digits
from zoo.registry import entries

MODELS = [entry.name for entry in entries("models")]
#: 101 validation samples: a prime, so that no number of processes or batches divides them.
DIGITS = ["--data=Digits", "--data.batch_size=32", "--data.val_size=101"]


def _text(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text("".join(chr(97 + index * index % 23) for index in range(4000)))
    return str(path)


def teacher_checkpoint(folder: Path) -> str:
    """Writes the checkpoint of a tiny Diffusion, calibrated but not trained; returns its path."""
    model = Diffusion((1, 8, 8), 10, network=unet(16), steps=2)
    data = Digits()
    data.setup("fit")
    model.calibrate(data.reference(100))
    save_untrained(model, folder / "teacher.ckpt")
    return str(folder / "teacher.ckpt")


# Options of a tiny model of each class and of its data, from the folder for files that they need.
TINY_MODELS: dict[str, Callable[[Path], list[str]]] = {
    "ConsistencyModel": lambda folder: [f"--model.teacher={teacher_checkpoint(folder)}", *DIGITS],
    "Diffusion": lambda _: [
        "--model.network=UNet", "--model.network.widths=[16]", "--model.network.blocks=1", "--model.steps=2", *DIGITS,
    ],
    "GAN": lambda _: [
        "--model.generator=MLPGenerator", "--model.generator.width=32", "--model.discriminator=MLPDiscriminator",
        "--model.discriminator.width=32", "--model.latent_dim=8", *DIGITS,
    ],
    "Classifier": lambda _: [
        "--model.network=CIFARResNet", "--model.network.depth=8", "--model.network.widths=[4, 4, 4]", *DIGITS,
    ],
    "MLPClassifier": lambda _: ["--model.width=16", "--model.depth=2", *DIGITS],
    "ResNetClassifier": lambda _: [
        "--model.backbone=pooled", "--model.depth=8", "--model.widths=[4, 4, 4]", "--model.whitening=true",
        "--model.low_resolution=0.7", *DIGITS,
    ],
    "Seq2Seq": lambda _: [
        "--model.layers=1", "--model.width=16", "--model.heads=2",
        "--data=Sequences", "--data.digits=4", "--data.num_train=1000", "--data.num_test=101", "--data.val_size=101",
        "--data.batch_size=32",
    ],
    "TransformerLM": lambda folder: [
        "--model.layers=1", "--model.width=16", "--model.heads=2",
        "--data=Text", f"--data.path={_text(folder)}", "--data.tokenizer=characters", "--data.context_length=8",
        "--data.batch_size=8", "--data.test_size=0.1",
    ],
    "ViTClassifier": lambda _: [
        "--model.layers=1", "--model.width=16", "--model.heads=2", "--model.calibrate=true", *DIGITS,
    ],
}  # fmt: skip


def tiny_arguments(name: str, folder: Path) -> list[str]:
    """Options of the command `fit` for a tiny model on tiny data, without those of the Trainer.

    Args:
        name: name of the model in the registry.
        folder: folder for files that it needs: a text, a teacher's checkpoint.
    """
    if name not in TINY_MODELS:
        pytest.fail(
            f"{name} is in the registry but has no tiny run: add an entry to TINY_MODELS in tests/helpers/models.py, "
            "with options that make the model and its data small; the tests of all models then include it"
        )
    return [f"--model={name}", *TINY_MODELS[name](folder)]


#: Callbacks of every model, with their options in a run of six steps.
COMMON = ["GradientFlow", "every_n_steps=2", "CurvePlotter", "RunReport", "StopOnNonFinite", "every_n_steps=1"]
SAMPLES = ["SampleLogger", "n=2", "every_n_steps=3"]
CLASSIFIED = ["ClassReport", "PredictionWriter", "OutOfDistribution", "data=Digits"]
BEST_FD = ["BestAndLastCheckpoint", "monitor=val/fd"]
BEST_LOSS = ["BestAndLastCheckpoint", "monitor=val/loss"]
#: Callbacks of each model: their names, and their options as name=value.
CALLBACKS: dict[str, list[str]] = {
    "ConsistencyModel": [*COMMON, *BEST_FD, *SAMPLES],
    "Diffusion": [*COMMON, *BEST_FD, *SAMPLES],
    "GAN": [*COMMON, *BEST_FD, *SAMPLES],
    "Classifier": [*COMMON, *BEST_LOSS, *CLASSIFIED],
    "MLPClassifier": [*COMMON, *BEST_LOSS, *CLASSIFIED],
    "ResNetClassifier": [*COMMON, *BEST_LOSS, *CLASSIFIED],
    "Seq2Seq": [*COMMON, *BEST_LOSS, "AttentionMaps", "every_n_steps=3"],
    "TransformerLM": [*COMMON, *BEST_LOSS, *SAMPLES],
    "ViTClassifier": [*COMMON, *BEST_LOSS, *CLASSIFIED],
    "GAN of points": [
        *COMMON, "BestAndLastCheckpoint", "monitor=val/w1", *SAMPLES, "ModeCoverage", "n=20", "EquilibriumReport",
        "n=100",
    ],
}  # fmt: skip
#: A GAN of points, for which there are callbacks of its own.
GAN_OF_POINTS = [
    "--model=GAN", "--model.generator=MLPGenerator", "--model.generator.width=16",
    "--model.discriminator=MLPDiscriminator", "--model.discriminator.width=16", "--model.latent_dim=4",
    "--data=Points", "--data.distribution=gaussians", "--data.num_train=1000", "--data.num_test=101",
    "--data.val_size=101", "--data.batch_size=32",
]  # fmt: skip


def callback_arguments(name: str) -> list[str]:
    """Options of the command line for all callbacks that a model can have; see `CALLBACKS`."""
    if name not in CALLBACKS:
        pytest.fail(f"{name} is in the registry but has no callbacks: add an entry to CALLBACKS")
    return [
        f"--trainer.callbacks.{word}" if "=" in word else f"--trainer.callbacks+={word}" for word in CALLBACKS[name]
    ]
