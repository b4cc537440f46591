"""Fine-tuning of a small pretrained network on few images of new classes, against training it from scratch. Usage:

    python -m benchmarks.finetune --root data/cifar10-jpeg --seeds 3
    python -m benchmarks.finetune --images 10
    python -m benchmarks.finetune --root data/cifar10-jpeg --first_seed 100 --lr 0.001 0.003 0.01 --choose

`PooledResNet` is trained on all classes but three; its checkpoint is the start (`init_from`) for the other three, of
which there are few images. Without `--root` the images are the digits that the package ships. Every row has the same
number of steps, optimizer and augmentation; no checkpoint is selected, and the test split is measured once, after the
last step. `--choose` measures on training images that were not drawn instead, to choose a learning rate by. A seed is
that of the network, of the training images that are drawn, and of their order.

Each run prints a line of JSON; the table of means and standard deviations over the seeds follows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor

from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo import Classifier
from zoo.datamodules import Digits, ImageFolder, InMemoryDataModule
from zoo.datamodules.augment import Augment
from zoo.models import PooledResNet
from zoo.optim import WarmupDecay

NEW_CLASSES = 3
BATCH_SIZE = 30


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: label.
        lr: learning rate, chosen among 0.001, 0.003 and 0.01 by `--choose` with seed 100.
        options: options of the classifier.
        frozen: share of the run for which the backbone is frozen.
    """

    name: str
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    frozen: float = 0.0


DECAY = {"layer_decay": 0.75}
ROWS = {
    "scratch": Row("from scratch", 0.01, {"init_from": None}),
    "head": Row("head alone, frozen backbone", 0.01, frozen=2.0),
    "all": Row("all layers", 0.001),
    "layer_decay": Row("all layers, layer_decay 0.75", 0.003, DECAY),
    "head_first": Row("head first, then all layers, layer_decay 0.75", 0.003, DECAY, 1 / 3),
}


class SomeClasses(InMemoryDataModule):
    """Some classes of other data.

    Args:
        data: data module that reads the images.
        classes: indices of the classes.
        images: number of training images of each class, drawn by `seed`; None for all of them.
        choose: take up to 1,000 images a class that were not drawn as the test split.
        **options: arguments of `InMemoryDataModule`.
    """

    def __init__(
        self,
        data: InMemoryDataModule,
        classes: Sequence[int],
        images: int | None = None,
        choose: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.data, self.classes, self.images, self.choose = data, list(classes), images, choose
        self.input_shape, self.num_classes = data.input_shape, len(self.classes)
        self.class_names = [data.class_names[index] for index in self.classes]
        self.mirror_symmetric = data.mirror_symmetric

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        x, y = self.data.load_split(train or self.choose)
        generator = torch.Generator().manual_seed(self.seed)
        rows, labels = [], []
        for label, index in enumerate(self.classes):
            found = (y == index).nonzero().flatten()
            if self.images and (train or self.choose):
                found = found[torch.randperm(len(found), generator=generator)]
                found = found[: self.images] if train else found[self.images : self.images + 1000]
            rows.append(found)
            labels.append(torch.full((len(found),), label))
        return x[torch.cat(rows)], torch.cat(labels)


def augmentation(data: InMemoryDataModule) -> Augment:
    """Shifts, and mirror images where the classes allow it."""
    return Augment(crop=data.input_shape[1] // 8, flip=data.mirror_symmetric)


def few_images(data: InMemoryDataModule, classes: Sequence[int], images: int, seed: int, choose: bool) -> SomeClasses:
    """Data of the new classes: `images` of each for training, and one more each for the validation split."""
    return SomeClasses(
        data,
        classes,
        images + 1,
        choose,
        batch_size=BATCH_SIZE,
        val_size=len(classes),
        seed=seed,
        augment=augmentation(data),
    )


def trainer(**options: Any) -> Trainer:
    """Trainer on the CPU that writes nothing."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, **(quiet | options))


def network(widths: Sequence[int]) -> Any:
    """Network of all rows."""
    return partial(PooledResNet, depth=2 + 2 * len(widths), widths=widths)


def pretrain(
    data: InMemoryDataModule, classes: Sequence[int], epochs: int, widths: Sequence[int], seed: int
) -> Trainer:
    """Trains on the classes of which there are many images, with the settings of resnet.yaml."""
    seed_everything(seed, verbose=False)
    many = SomeClasses(data, classes, batch_size=128, seed=seed, augment=augmentation(data))
    model = Classifier(
        many.input_shape,
        many.num_classes,
        network(widths),
        label_smoothing=0.1,
        channels_last=True,
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9, nesterov=True, weight_decay=5e-4),
        lr_scheduler=partial(WarmupDecay, warmup_steps=0.2, final=0.0),
    )
    run = trainer(max_epochs=epochs)
    run.fit(model, datamodule=many)
    return run


def fine_tune(row: str, few: SomeClasses, path: str, widths: Sequence[int], steps: int, lr: float, seed: int) -> float:
    """Test accuracy of a row, after training on few images."""
    options, frozen = ROWS[row].options, ROWS[row].frozen
    seed_everything(seed, verbose=False)
    model = Classifier(
        few.input_shape,
        few.num_classes,
        network(widths),
        **({"init_from": path} | options),
        label_smoothing=0.1,
        channels_last=True,
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.05),
        lr_scheduler=partial(WarmupDecay, warmup_steps=0.1, final=0.0),
    )
    few.setup("fit")
    epochs = max(1, steps // len(few.train_dataloader()))
    freeze = [BackboneFinetuning(max(1, round(frozen * epochs)), train_bn=False)] if frozen else []
    run = trainer(max_epochs=epochs, limit_val_batches=0, callbacks=freeze)
    run.fit(model, datamodule=few)
    (result,) = run.test(model, datamodule=few, verbose=False)
    return result["test/acc"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command."""
    parser = new_parser(__doc__)
    parser.add_argument("--root", help="folder of color images with train/<class>/ and test/<class>/")
    parser.add_argument("--image_size", type=int, default=32, help="height and width of these images, in pixels")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="first seed")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="rows of the table")
    parser.add_argument("--images", type=int, nargs="+", default=[20, 100], help="training images of each new class")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of pretraining")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128], help="channels of each stage")
    parser.add_argument("--steps", type=int, default=200, help="steps of fine-tuning")
    parser.add_argument("--lr", type=float, nargs="+", help="learning rates of every row, instead of its own")
    parser.add_argument("--choose", action="store_true", help="measure on training images that were not drawn")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(1)
    data = ImageFolder(options.root, image_size=options.image_size) if options.root else Digits()
    every = range(len(data.class_names))
    old, new = every[:-NEW_CLASSES], every[-NEW_CLASSES:]
    settings = [(row, lr) for row in options.rows for lr in options.lr or [ROWS[row].lr]]
    found: dict[tuple[str, float, int], list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "pretrained.ckpt")
            start = time.process_time()
            run = pretrain(data, old, options.epochs, options.widths, seed)
            run.save_checkpoint(path)
            seconds = time.process_time() - start
            report("pretraining", seed, val_acc=float(run.callback_metrics["val/acc"]), cpu_seconds=seconds)
            for images in options.images:
                few = few_images(data, new, images, seed, options.choose)
                for row, lr in settings:
                    start = time.process_time()
                    accuracy = fine_tune(row, few, path, options.widths, options.steps, lr, seed)
                    found.setdefault((row, lr, images), []).append(100 * accuracy)
                    seconds = time.process_time() - start
                    measured = {f"acc_{images}": accuracy, f"cpu_seconds_{images}": seconds}
                    report(f"{ROWS[row].name}, lr {lr:g}", seed, **measured)
    lines = [
        [ROWS[row].name, f"{lr:g}", *(mean_std(found[row, lr, n], 1) for n in options.images)] for row, lr in settings
    ]
    header = ["test accuracy, %", "learning rate", *(f"{images} images a class" for images in options.images)]
    print(markdown_table(header, lines))


if __name__ == "__main__":
    main()
