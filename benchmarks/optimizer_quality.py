"""SGD, Adam, AdamW and the lecture's Adam in its scopes, with the learning rate of each tuned in the same way.

Each optimizer trains the same network with every learning rate of its own grid of five, half a decade apart; the grid
is extended until its best value is not at an end. The best by validation loss is trained again with other seeds, and
the table reports these runs. All use the same batches, the same linear decay to zero and the same number of steps. Only
the training and validation splits are read. With `--text` the network is a Transformer of four layers and 128 channels
on characters, and the accuracy that of the next character. Usage:

    python -m benchmarks.optimizer_quality --root data
    python -m benchmarks.optimizer_quality --text tinyshakespeare.txt --steps 400 --batch_size 12
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import image_data
from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo.datamodules import Text
from zoo.datamodules.text import TokenWindows
from zoo.models.mlp.network import DropoutMLP
from zoo.models.resnet.network import CIFARResNet
from zoo.models.transformer.network import LanguageModel
from zoo.optim import ScalarAdam, WarmupDecay, parameter_groups

OptimizerFactory = Callable[[Any, float], torch.optim.Optimizer]
NetworkFactory = Callable[[], nn.Module]
Split = tuple[Tensor, Tensor]  # inputs, targets

# Factory, and the center of the first grid of learning rates.
OPTIMIZERS: dict[str, tuple[OptimizerFactory, float]] = {
    "SGD, momentum 0.9": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 0.1),
    "Adam": (lambda p, lr: torch.optim.Adam(p, lr=lr), 1e-3),
    "AdamW, decay 0.05": (lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.05), 1e-3),
    "ScalarAdam, global": (lambda p, lr: ScalarAdam(p, lr=lr), 0.3),
    "ScalarAdam, global, rms": (lambda p, lr: ScalarAdam(p, lr=lr, scale="rms"), 1e-3),
    "ScalarAdam, group, rms": (lambda p, lr: ScalarAdam(p, lr=lr, scope="group", scale="rms"), 1e-3),
    "ScalarAdam, tensor, rms": (lambda p, lr: ScalarAdam(p, lr=lr, scope="tensor", scale="rms"), 1e-3),
}


def image_task(root: str | None) -> tuple[Split, Split, dict[str, NetworkFactory]]:
    """Training and validation split, and networks without dropout, so that only the optimizer differs."""
    data = image_data(root)
    data.setup("validate")
    shape, classes = data.input_shape, data.num_classes
    patch_size = 2 if shape[-1] % 2 == 0 else 1
    networks: dict[str, NetworkFactory] = {
        "MLP 2x256": lambda: DropoutMLP(shape, classes, 256, 2, 0.0, 0.0),
        "ResNet-8": lambda: CIFARResNet(shape, classes, 8, (16, 32, 64), patch_size=patch_size),
    }
    return data.split("train"), data.split("val"), networks


def text_task(path: str) -> tuple[Split, Split, dict[str, NetworkFactory]]:
    """Windows of 64 characters and the characters after each, training and validation split, and a Transformer."""
    data = Text(path, tokenizer="characters")
    data.setup("validate")
    windows = [TokenWindows(data.split(name), data.context_length, jitter=False) for name in ("train", "val")]
    train, val = (split.__getitems__(list(range(len(split)))) for split in windows)
    return train, val, {"Transformer": lambda: LanguageModel(data.num_classes)}


def train(
    new_network: NetworkFactory,
    new_optimizer: OptimizerFactory,
    splits: tuple[Split, Split],
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> tuple[float, float]:
    """Trains a network; returns its validation loss, infinite if it diverged, and its validation accuracy."""
    torch.manual_seed(seed)
    network = new_network()
    optimizer = new_optimizer(parameter_groups(network), lr)
    scheduler = WarmupDecay(optimizer, warmup_steps=0.05, final=0.0, total_steps=steps)
    (x, y), (x_val, y_val) = splits
    for _ in range(steps):
        index = torch.randint(len(x), (batch_size,))
        loss = F.cross_entropy(network(x[index]).flatten(0, -2), y[index].flatten())  # of images and of sequences
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in x_val.split(500)])
    val_loss = F.cross_entropy(logits.flatten(0, -2), y_val.flatten()).item()
    return (val_loss if math.isfinite(val_loss) else math.inf), (logits.argmax(-1) == y_val).float().mean().item()


def tune(run: Callable[[float, int], tuple[float, float]], center: float) -> float:
    """Learning rate with the lowest loss for seed 0 on a grid of half decades.

    The grid is extended until the best learning rate is not at an end.
    """
    losses: dict[int, float] = {}
    low, high = -2, 2
    while True:
        for exponent in range(low, high + 1):
            if exponent not in losses:
                losses[exponent] = run(center * 10 ** (exponent / 2), 0)[0]
        best = min(losses, key=lambda exponent: losses[exponent])
        if low < best < high:
            return center * 10 ** (best / 2)
        low, high = min(low, best - 1), max(high, best + 1)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--root", help="folder of Fashion-MNIST (default: the embedded digits instead)")
    parser.add_argument("--text", help="text file to train a Transformer on, instead of images")
    parser.add_argument("--steps", type=int, default=800, help="training steps of each run")
    parser.add_argument("--batch_size", type=int, default=128, help="images or windows per batch")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds, besides that of tuning")
    parser.add_argument("--optimizers", nargs="+", default=[""], help="prefixes of the optimizers (default: all)")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    train_split, val_split, networks = text_task(options.text) if options.text else image_task(options.root)
    chosen = {name: entry for name, entry in OPTIMIZERS.items() if name.startswith(tuple(options.optimizers))}
    rows = []
    for network, new_network in networks.items():
        for name, (new_optimizer, center) in chosen.items():
            splits = (train_split, val_split)
            run = partial(train, new_network, new_optimizer, splits, options.steps, options.batch_size)
            lr = tune(run, center)
            losses, accuracies = zip(*(run(lr, seed) for seed in range(1, options.seeds + 1)), strict=True)
            for seed, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1):
                report(f"{network}, {name}", seed, lr=lr, loss=loss, acc=accuracy)
            percent = [100 * accuracy for accuracy in accuracies]
            rows.append([network, name, f"{lr:.2g}", mean_std(losses, 3), mean_std(percent, 2)])
    print(markdown_table(["network", "optimizer", "learning rate", "loss", "accuracy %"], rows))


if __name__ == "__main__":
    main()
