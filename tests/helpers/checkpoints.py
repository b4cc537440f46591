"""Tiny checkpoints that tests of several commands share; the fixture `checkpoint` makes each once in a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from tests.helpers.networks import mlps, residual_mlp, unet
from zoo import GAN, Diffusion, MLPClassifier, TransformerLM
from zoo.datamodules import Digits, Text

IMAGES = {"input_shape": (1, 8, 8), "num_classes": 10}


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made.

    Attributes:
        build: from a folder for files to the model and the data it is trained on, or None for an untrained model.
        steps: number of training steps.
    """

    build: Callable[[Path], tuple[LightningModule, LightningDataModule | None]]
    steps: int = 0


def _text(folder: Path) -> tuple[LightningModule, LightningDataModule]:
    (folder / "text.txt").write_text("Wörter und Sätze.\n" * 200, encoding="utf-8")
    data = Text(str(folder / "text.txt"), "characters", context_length=16)
    size = {"layers": 1, "width": 16, "heads": 2}
    return TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, **size), data


RECIPES = {
    "diffusion": Recipe(lambda _: (Diffusion(**IMAGES, conditional=True, network=unet(32)), Digits()), 60),
    "text": Recipe(_text, 20),
    # For mistakes, which are answered before anything is computed, training makes no difference.
    "unconditional_diffusion": Recipe(lambda _: (Diffusion(**IMAGES, network=unet(8)), None)),
    "points_diffusion": Recipe(lambda _: (Diffusion((2,), network=residual_mlp(8)), None)),
    "gan": Recipe(lambda _: (GAN(**IMAGES, **mlps(16), latent_dim=4), None)),
    "mlp": Recipe(lambda _: (MLPClassifier(**IMAGES, width=8, depth=1), None)),
    "letters": Recipe(lambda _: (TransformerLM((8,), 3, "characters:abc", layers=1, width=8, heads=2), None)),
}


def make_checkpoint(name: str, folder: Path) -> str:
    """Makes a checkpoint.

    Args:
        name: key of `RECIPES`.
        folder: folder of the checkpoint and of files that its training reads.

    Returns:
        Path to the checkpoint, `<folder>/<name>.ckpt`.
    """
    seed_everything(0, verbose=False)
    recipe = RECIPES[name]
    model, data = recipe.build(folder)
    path = folder / f"{name}.ckpt"
    if data is None:
        save_untrained(model, path)
    else:
        trainer = _trainer(max_steps=recipe.steps, limit_val_batches=0)
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(path)
    return str(path)


def save_untrained(model: LightningModule, path: Path) -> None:
    """Writes the checkpoint of a model that is not trained."""
    trainer = _trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


def _trainer(**options: int) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)
