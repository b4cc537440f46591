"""What a generative model can do, over the course of its training: pictures, or text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from zoo.errors import UserError
from zoo.pictures import Picture, film_of, picture_of, save_gif, save_png, unused_path
from zoo.writing import save_texts

FILM_FRAMES = 100  # at most


class SampleLogger(Callback):
    """Draws samples from the same noise again and again, to disk and to Weights & Biases.

    For any LightningModule with `sample(n, *, labels, generator)` that returns images (n, C, H, W) in [-1, 1], points
    (n, D), or tokens (n, T), for which it has `decode(tokens) -> list[str]`. The pictures lie in `samples/` in the
    run's folder: one for each time, and at the end a film of all of them; of a model that has `trajectory(n, *, labels,
    generator) -> (frames, n, ...)` also the film of how its samples come about, from noise by diffusion or on a way
    through a GAN's latent space. Text is written to files there, and to a table of Weights & Biases. Training is not
    disturbed: the random numbers are the callback's own.

    Args:
        n: samples in a picture. A conditional model draws its classes in turn, one in a column.
        every_n_steps: optimizer steps from one picture to the next; there is always one before training and one
            after it.
        seed: of the noise.
        film: make the films.
    """

    def __init__(self, n: int = 64, every_n_steps: int = 500, seed: int = 0, film: bool = True) -> None:
        if n < 1 or every_n_steps < 1:
            raise UserError(f"SampleLogger needs n and every_n_steps of at least 1, not {n} and {every_n_steps}")
        self.n = n
        self.every_n_steps = every_n_steps
        self.seed = seed
        self.film = film
        self._folder: Path | None = None
        self._last_step = -1
        self._pictures: list[Path] = []
        self._resumed: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not callable(getattr(pl_module, "sample", None)):
            raise UserError(f"SampleLogger needs a model with a method sample; {type(pl_module).__name__} has none")
        if stage != "fit":
            return
        # On every rank, since Lightning agrees on the folder by a broadcast.
        log_dir = trainer.log_dir
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if log_dir is None or not trainer.loggers:
            rank_zero_warn("SampleLogger writes no pictures: the Trainer has no logger, so there is no folder for them")
        else:
            self._folder = Path(log_dir) / "samples"

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step, "pictures": [path.name for path in self._pictures]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step, self._pictures = -1, []
        resumed, self._resumed = self._resumed, None
        if resumed and self._folder and all((self._folder / name).is_file() for name in resumed["pictures"]):
            self._last_step = resumed["last_step"]
            self._pictures = [self._folder / name for name in resumed["pictures"]]
            if trainer.is_global_zero:
                forget_after(self._folder, trainer.global_step)
        else:
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)
        # The pictures of a run that goes on are known to every rank, but the film is made once.
        if self.film and self._folder and len(self._pictures) > 1 and trainer.is_global_zero:
            # Read back from disk, and thinned out, so that a long run costs no more memory than a short one.
            *paths, last = self._pictures
            frames = [_read(path) for path in (*paths[:: -(-len(paths) // FILM_FRAMES)], *[last] * 5)]
            save_gif(unused_path(self._folder / "film.gif"), frames, seconds=0.25)
            self._draw_trajectory(trainer, pl_module)

    def _draw_trajectory(self, trainer: Trainer, model: Any) -> None:
        if self._folder is None or not callable(getattr(model, "trajectory", None)):
            return
        labels = self._labels(model)
        states = model.trajectory(self.n, labels=labels, generator=torch.Generator().manual_seed(self.seed))
        columns = None if labels is None else model.num_classes
        path = unused_path(self._folder / "trajectory.gif")
        save_gif(path, film_of(states, columns))
        for logger in trainer.loggers:
            if hasattr(logger, "log_video"):
                logger.log_video("trajectory", [str(path)], step=trainer.global_step, format=["gif"])

    def _labels(self, model: Any) -> Tensor | None:
        """The classes of a conditional model in turn, None for any other."""
        return torch.arange(self.n) % model.num_classes if getattr(model, "conditional", False) else None

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        # Of a sharded model every process has a part, so that all of them must draw.
        draws = trainer.is_global_zero or isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))
        if not draws or self._folder is None or step == self._last_step:
            return
        self._last_step = step
        model: Any = pl_module
        labels = self._labels(model)
        samples = model.sample(self.n, labels=labels, generator=torch.Generator().manual_seed(self.seed))
        if not trainer.is_global_zero:
            return
        if callable(getattr(model, "decode", None)):
            self._write(trainer, step, model.decode(samples))
            return
        reference = getattr(getattr(trainer, "datamodule", None), "reference", None)
        data = reference(2000) if reference and samples.ndim == 2 else None
        picture = picture_of(samples, columns=None if labels is None else model.num_classes, data=data)
        path = unused_path(self._folder / f"step_{step:07d}.png")
        save_png(path, picture)
        self._pictures.append(path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [picture], step=step)

    def _write(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        assert self._folder is not None
        save_texts(self._folder / f"step_{step:07d}.txt", texts)
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                logger.log_text("samples", columns=["step", "text"], data=[[step, text] for text in texts], step=step)


def forget_after(folder: Path, step: int) -> None:
    """Removes the pictures and texts of later steps, which a run that goes on from this one makes anew, and films."""
    for path in folder.glob("*"):
        number = path.stem.removeprefix("step_")
        if path.suffix == ".gif" or (number.isdigit() and int(number) > step):
            path.unlink()


def _read(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
