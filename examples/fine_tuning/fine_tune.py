"""Fine-tunes a pretrained classifier on a folder of pictures, with a sub-folder for each class."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

import zoo
from zoo import Classifier
from zoo.callbacks import BestAndLastCheckpoint, CurvePlotter
from zoo.datamodules import ImageFolder
from zoo.models import TorchvisionResNet


def adapt(pretrained: Classifier, num_classes: int, **options: Any) -> Classifier:
    """A model of the same kind with other classes, which begins with all weights but those of its last layer.

    Args:
        pretrained: classifier of any class of the zoo.
        num_classes: number of classes of the new data.
        **options: arguments that differ, such as the optimizer.
    """
    model = type(pretrained)(**{**pretrained.hparams, "num_classes": num_classes, **options})
    weights = (pretrained.ema.network if pretrained.ema else pretrained.network).state_dict()
    shapes = {name: value.shape for name, value in model.network.state_dict().items()}
    fitting = {name: value for name, value in weights.items() if value.shape == shapes.get(name)}
    for network in filter(None, (model.network, model.ema and model.ema.network)):
        network.load_state_dict(fitting, strict=False)
    return model


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Trains, and returns the Trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="folder of pictures")
    parser.add_argument("--ckpt_path", help="checkpoint of a classifier of the zoo (default: a ResNet of torchvision)")
    parser.add_argument("--weights", default="DEFAULT", help="its pretrained weights; none for random ones")
    parser.add_argument("--image_size", type=int, default=96, help="height and width of its images, in pixels")
    parser.add_argument("--max_epochs", type=int, default=10, help="number of passes over the pictures")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate, below that of a training from scratch")
    args = parser.parse_args(arguments)

    optimizer = partial(torch.optim.AdamW, lr=args.lr, weight_decay=0.01)
    if args.ckpt_path:
        pretrained = zoo.load(args.ckpt_path)
        channels, size, _ = pretrained.input_shape
        data = ImageFolder(args.root, size, channels, batch_size=16)
        model = adapt(pretrained, data.num_classes, optimizer=optimizer)
    else:
        data = ImageFolder(args.root, args.image_size, batch_size=16)
        network = partial(TorchvisionResNet, name="resnet18", weights=None if args.weights == "none" else args.weights)
        model = Classifier(data.input_shape, data.num_classes, network, optimizer=optimizer)

    best = BestAndLastCheckpoint(monitor="val/acc", mode="max")
    trainer = Trainer(
        max_epochs=args.max_epochs,
        logger=CSVLogger("runs", name="fine_tuning"),
        callbacks=[CurvePlotter(), best],
        log_every_n_steps=1,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    print(f"val/acc {best.best_model_score:.3f} in {best.best_model_path}; classes: {', '.join(data.class_names)}")
    return trainer


if __name__ == "__main__":
    main()
