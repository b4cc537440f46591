"""A GAN with networks of one's own, from Python: training, loading, and sampling."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from own_networks import Discriminator, Generator
from zoo import GAN
from zoo.callbacks import BestAndLastCheckpoint, CurvePlotter, SampleLogger
from zoo.datamodules import Digits


def main(arguments: Sequence[str] | None = None) -> GAN:
    """Trains, and returns the best model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=1500, help="number of training steps")
    parser.add_argument("--width", type=int, default=32, help="number of channels of both networks")
    args = parser.parse_args(arguments)

    # The model adds what only it knows: (input_shape, latent_dim, num_classes), and (input_shape, num_classes).
    networks = {
        "generator": partial(Generator, width=args.width),
        "discriminator": partial(Discriminator, width=args.width),
    }
    data = Digits(repeats=20)
    model = GAN(data.input_shape, data.num_classes, conditional=True, latent_dim=32, **networks)
    best = BestAndLastCheckpoint(monitor="val/fd")
    trainer = Trainer(
        max_steps=args.max_steps,
        val_check_interval=min(args.max_steps, 375),
        check_val_every_n_epoch=None,
        logger=CSVLogger("runs", name="own_networks"),
        callbacks=[SampleLogger(n=50, every_n_steps=500), CurvePlotter(), best],
        log_every_n_steps=25,
        enable_model_summary=False,
    )
    trainer.fit(model, data)

    # A checkpoint names your classes but imports nothing, so they are handed in again.
    model = GAN.load_from_checkpoint(best.best_model_path, weights_only=True, **networks)
    sevens = model.sample(16, labels=torch.full((16,), 7))  # (16, 1, 8, 8) in [-1, 1]
    print(f"val/fd {best.best_model_score:.3g} in {best.best_model_path}; sevens {tuple(sevens.shape)}")
    return model


if __name__ == "__main__":
    main()
