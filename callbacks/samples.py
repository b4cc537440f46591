"""Samples of a generative model during training: images, points, or text."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from zoo.callbacks.run_folder import remove_after, run_folder, takes_part
from zoo.contracts import (
    Decoding,
    Generative,
    ImageLogger,
    ReferenceSamples,
    TextLogger,
    Trajectories,
    VideoLogger,
    data_of,
    is_conditional,
    left_out,
    offers,
    require,
)
from zoo.errors import check_at_least, check_seed
from zoo.files import save_texts, unused_path
from zoo.plotting.images import RGBImage, save_gif, save_png
from zoo.plotting.notebook import Output, Rich, captioned, in_notebook
from zoo.plotting.samples import class_columns, render_frames, render_samples

MAX_FRAMES = 100  # of the animation over training


class SampleLogger(Callback):
    """Draws samples from the same noise at regular steps, to disk and to Weights & Biases.

    For any LightningModule that offers `zoo.contracts.Generative`: images (n, C, H, W) in [-1, 1], points (n, D), or,
    with `Decoding`, tokens (n, T). Images are written to `samples/` in the run's folder, with an animation of all of
    them after training; with `Trajectories` also an animation of these. Points are drawn over training points if the
    data offers `ReferenceSamples`. Text is written to files, and to a table in Weights & Biases. A notebook shows the
    newest samples in place. The callback draws its own random numbers, so training does not depend on it.

    Args:
        n: number of samples per image. A conditional model cycles through its classes, one per column unless there are
            too many for it.
        every_n_steps: optimizer steps between images; one image is always drawn before training and one after it.
        seed: random seed of the noise.
        animate: write the animations.
    """

    def __init__(self, n: int = 64, every_n_steps: int = 500, seed: int = 0, animate: bool = True) -> None:
        check_at_least(1, n=n, every_n_steps=every_n_steps)
        check_seed(seed=seed)
        self.n = n
        self.every_n_steps = every_n_steps
        self.seed = seed
        self.animate = animate
        self._folder: Path | None = None
        self._shown: Output | None = None
        self._last_step = -1
        self._images: list[Path] = []
        self._resumed: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(self, pl_module, Generative, remedy="use a generative model")
        if stage != "fit":
            return
        # A notebook shows them, with a folder or without.
        folder = run_folder(trainer, missing="" if in_notebook() else "SampleLogger writes no images")
        self._folder = folder / "samples" if folder else None

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step, "images": [path.name for path in self._images]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Names only: pictures are read and removed in this run's folder.
        images = [Path(name).name for name in state_dict["images"]]
        self._resumed = {"last_step": state_dict["last_step"], "images": images}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step, self._images = -1, []
        self._shown = Output() if in_notebook() else None
        resumed, self._resumed = self._resumed, None
        if resumed and self._folder and all((self._folder / name).is_file() for name in resumed["images"]):
            self._last_step = resumed["last_step"]
            self._images = [self._folder / name for name in resumed["images"]]
            if trainer.is_global_zero:
                remove_after(self._folder, trainer.global_step)
        else:
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)
        # In a resumed run every rank knows the images, but only rank 0 writes the animation.
        if self.animate and self._folder and len(self._images) > 1 and trainer.is_global_zero:
            # Read from disk and subsampled, so that memory does not grow with the length of the run.
            *paths, last = self._images
            frames = [_read(path) for path in (*paths[:: -(-len(paths) // MAX_FRAMES)], *[last] * 5)]
            save_gif(unused_path(self._folder / "film.gif"), frames, seconds=0.25)
            self._draw_trajectory(trainer, pl_module)

    def _draw_trajectory(self, trainer: Trainer, model: Any) -> None:
        if self._folder is None or not offers(model, Trajectories):
            return
        labels = self._labels(model)
        states = model.trajectory(self.n, labels=labels, generator=torch.Generator().manual_seed(self.seed))
        path = unused_path(self._folder / "trajectory.gif")
        save_gif(path, render_frames(states, self._columns(model)))
        for logger in trainer.loggers:
            if offers(logger, VideoLogger):
                logger.log_video("trajectory", [str(path)], step=trainer.global_step, format=["gif"])

    def _labels(self, model: Any) -> Tensor | None:
        """Classes to draw, cycled through; None for an unconditional model."""
        return torch.arange(self.n) % model.num_classes if is_conditional(model) else None

    def _columns(self, model: Any) -> int | None:
        """Columns of the grid of samples; None for a square."""
        return class_columns(self.n, model.num_classes) if is_conditional(model) else None

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        nowhere = self._folder is None and self._shown is None
        if not takes_part(trainer) or nowhere or step == self._last_step:
            return
        self._last_step = step
        model: Any = pl_module
        labels = self._labels(model)
        samples = model.sample(self.n, labels=labels, generator=torch.Generator().manual_seed(self.seed))
        if not trainer.is_global_zero:
            return
        if offers(model, Decoding):
            self._write_texts(trainer, step, model.decode(samples))
        else:
            reference = self._reference(data_of(trainer)) if samples.ndim == 2 else None
            self._write_image(trainer, step, render_samples(samples, self._columns(model), data=reference))

    def _write_image(self, trainer: Trainer, step: int, image: RGBImage) -> None:
        if self._shown is not None:
            self._shown.show(captioned(image, f"samples after {step:,} steps"))
        if self._folder is None:
            return
        path = unused_path(self._folder / f"step_{step:07d}.png")
        save_png(path, image)
        self._images.append(path)
        for logger in trainer.loggers:
            if offers(logger, ImageLogger):
                logger.log_image("samples", [image], step=step)

    def _reference(self, data: Any) -> Tensor | None:
        """Training points (n, D) to be drawn behind samples."""
        left_out(self, data, {ReferenceSamples: "training points behind the samples"})
        return data.reference(2000) if offers(data, ReferenceSamples) else None

    def _write_texts(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        if self._shown is not None:
            self._shown.show(Rich(f"<pre>{escape(texts[0])}</pre>", texts[0]))
        if self._folder is None:
            return
        save_texts(unused_path(self._folder / f"step_{step:07d}.txt"), texts)
        for logger in trainer.loggers:
            if offers(logger, TextLogger):
                logger.log_text("samples", columns=["step", "text"], data=[[step, text] for text in texts], step=step)


def _read(path: Path) -> RGBImage:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
