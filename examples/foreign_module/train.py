"""Callbacks of the zoo on a LightningModule that knows nothing of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from flow import Flow, moons
from zoo.callbacks import BestAndLastCheckpoint, CurvePlotter, GradientFlow, SampleLogger, StopOnNonFinite


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Trains, and returns the Trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=2000, help="number of training steps")
    args = parser.parse_args(arguments)

    callbacks = [
        SampleLogger(n=1000, every_n_steps=200),  # samples/*.png
        GradientFlow(every_n_steps=100),  # gradient_flow_couplings.png, and whether gradients vanish
        CurvePlotter(),  # curves.png
        BestAndLastCheckpoint(monitor="val/loss"),  # checkpoints/best.ckpt and last.ckpt
        StopOnNonFinite(),  # ends the run at the first NaN or Inf, and names where it began
    ]
    trainer = Trainer(
        max_steps=args.max_steps,
        val_check_interval=min(args.max_steps, 200),
        check_val_every_n_epoch=None,
        logger=CSVLogger("runs", name="foreign_module"),
        callbacks=callbacks,
        log_every_n_steps=25,
        enable_model_summary=False,
    )
    trainer.fit(Flow(), moons(10_000, seed=0, batch_size=100, shuffle=True), moons(2000, seed=1, batch_size=1000))
    print(f"everything is in {trainer.log_dir}")
    return trainer


if __name__ == "__main__":
    main()
