"""A diffusion model of one's own data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from shapes import ComparableShapes, Shapes
from zoo import Diffusion
from zoo.callbacks import CurvePlotter, SampleLogger
from zoo.models import UNet


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Trains, and returns the Trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=1200, help="number of training steps")
    parser.add_argument("--comparable", action="store_true", help="data with reference and split")
    args = parser.parse_args(arguments)

    data = ComparableShapes() if args.comparable else Shapes()
    network = partial(UNet, widths=[64], blocks=2, patch_size=2)
    model = Diffusion(data.input_shape, data.num_classes, conditional=True, network=network, steps=10)
    trainer = Trainer(
        max_steps=args.max_steps,
        val_check_interval=min(args.max_steps, 400),
        check_val_every_n_epoch=None,
        logger=CSVLogger("runs", name="own_data"),
        callbacks=[SampleLogger(n=24, every_n_steps=400), CurvePlotter()],
        log_every_n_steps=25,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    print(f"samples are in {Path(trainer.log_dir or '.') / 'samples'}")
    return trainer


if __name__ == "__main__":
    main()
