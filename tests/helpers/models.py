"""A tiny run of every model in the catalog, for tests that hold for all of them: a new model is tested once it is here.

@pytest.mark.parametrize("name", MODELS)
def test_it_trains(name, tmp_path):
    main(["fit", *tiny_arguments(name, tmp_path), *TINY])
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from zoo import Diffusion
from zoo.datamodules import Digits
from zoo.registry import entries

MODELS = [entry.name for entry in entries("models")]
#: What several processes should agree on is not hidden behind the noise of a batch: 1,098 samples to train on.
DIGITS = ["--data=Digits", "--data.batch_size=32", "--data.val_size=101"]


def _text(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text("".join(chr(97 + index * index % 23) for index in range(4000)))
    return str(path)


def teacher_checkpoint(folder: Path) -> str:
    """A checkpoint of a tiny Diffusion, calibrated but not trained."""
    model = Diffusion((1, 8, 8), 10, widths=(16,), blocks=1, steps=2)
    data = Digits()
    data.setup("fit")
    model.calibrate(data.reference(100))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "teacher.ckpt")
    return str(folder / "teacher.ckpt")


# What a tiny one of each model is: options of the model and its data, by the folder that files can be put in.
TINY_MODELS: dict[str, Callable[[Path], list[str]]] = {
    "ConsistencyModel": lambda folder: [f"--model.teacher={teacher_checkpoint(folder)}", *DIGITS],
    "Diffusion": lambda _: ["--model.widths=[16]", "--model.blocks=1", "--model.steps=2", *DIGITS],
    "GAN": lambda _: ["--model.width=32", "--model.latent_dim=8", *DIGITS],
    "MLPClassifier": lambda _: ["--model.width=16", "--model.depth=2", *DIGITS],
    "ResNetClassifier": lambda _: ["--model.depth=8", "--model.widths=[4, 4, 4]", *DIGITS],
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
    "ViTClassifier": lambda _: ["--model.layers=1", "--model.width=16", "--model.heads=2", *DIGITS],
}  # fmt: skip


def tiny_arguments(name: str, folder: Path) -> list[str]:
    """Options of the command `fit` for a tiny model of this name on tiny data, without those of the Trainer.

    Args:
        name: of the model in the catalog.
        folder: where what it needs is written: a text, a teacher's checkpoint.
    """
    if name not in TINY_MODELS:
        pytest.fail(
            f"{name} is in the catalog but has no tiny run: add an entry to TINY_MODELS in tests/helpers/models.py, with the "
            "options that make it and its data small, and all tests that hold for every model are run with it"
        )
    return [f"--model={name}", *TINY_MODELS[name](folder)]
