"""SGD, Adam, AdamW and the lecture's Adam in its scopes, the learning rate of each tuned in the same way.

Each optimizer trains the same network with every learning rate of a grid of its own, half a decade apart and five
wide; the grid moves on as long as its best lies at an end. The best by validation loss is trained anew with other
seeds, and these runs are what the table reports. All use the same batches, the same linear decay to zero and the same
number of steps. The validation split is the only one that is read. With a text, the network is a Transformer on its
characters, of four layers and 128 channels, and the accuracy that of the next character. Run it as

    python benchmarks/optimizer_quality.py --root data
    python benchmarks/optimizer_quality.py --text tinyshakespeare.txt --steps 400 --batch_size 12
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo.datamodules import Digits, FashionMNIST, Text
from zoo.datamodules.text import Windows
from zoo.models.mlp.network import MLP
from zoo.models.resnet.network import ResNet
from zoo.models.transformer.network import LanguageModel
from zoo.optim import ScalarAdam, WarmupDecay, parameter_groups

Factory = Callable[[Any, float], torch.optim.Optimizer]
Data = tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # inputs and targets, also held out

# The makers, and the middle of the first grid.
OPTIMIZERS: dict[str, tuple[Factory, float]] = {
    "SGD, momentum 0.9": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 0.1),
    "Adam": (lambda p, lr: torch.optim.Adam(p, lr=lr), 1e-3),
    "AdamW, decay 0.05": (lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.05), 1e-3),
    "ScalarAdam, global": (lambda p, lr: ScalarAdam(p, lr=lr), 0.3),
    "ScalarAdam, global, rms": (lambda p, lr: ScalarAdam(p, lr=lr, scale="rms"), 1e-3),
    "ScalarAdam, group, rms": (lambda p, lr: ScalarAdam(p, lr=lr, scope="group", scale="rms"), 1e-3),
    "ScalarAdam, tensor, rms": (lambda p, lr: ScalarAdam(p, lr=lr, scope="tensor", scale="rms"), 1e-3),
}


def of_images(root: str | None) -> tuple[Data, dict[str, Callable[[], nn.Module]]]:
    """Images, and the networks, by name, without dropout: what differs is the optimizer alone."""
    module = FashionMNIST(root=root) if root else Digits()
    module.setup("validate")
    shape, classes = module.input_shape, module.num_classes
    patch = 2 if shape[-1] % 2 == 0 else 1
    return (module.split("train"), module.split("val")), {
        "MLP 2x256": lambda: MLP(math.prod(shape), classes, 256, 2, 0.0, 0.0, pixels=True),
        "ResNet-8": lambda: ResNet(shape[0], classes, 8, (16, 32, 64), patch_size=patch),
    }


def of_text(path: str) -> tuple[Data, dict[str, Callable[[], nn.Module]]]:
    """Stretches of 64 characters, each with those that follow, and a Transformer."""
    module = Text(path, tokenizer="characters")
    module.setup("validate")
    windows = [Windows(module.split(name), module.context, jitter=False) for name in ("train", "val")]
    train, val = (split.__getitems__(list(range(len(split)))) for split in windows)
    return (train, val), {"Transformer": lambda: LanguageModel(module.num_classes)}


def train(
    make: Callable[[], nn.Module], factory: Factory, lr: float, data: Data, steps: int, batch: int, seed: int
) -> tuple[float, float]:
    """Trains one network; returns validation loss, infinite where it diverged, and accuracy."""
    torch.manual_seed(seed)
    network = make()
    optimizer = factory(parameter_groups(network), lr)
    scheduler = WarmupDecay(optimizer, warmup_steps=0.05, final=0.0, total_steps=steps)
    (x, y), (held_x, held_y) = data
    for _ in range(steps):
        index = torch.randint(len(x), (batch,))
        loss = F.cross_entropy(network(x[index]).flatten(0, -2), y[index].flatten())  # also of a sequence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in held_x.split(500)])
    loss = F.cross_entropy(logits.flatten(0, -2), held_y.flatten()).item()
    return (loss if math.isfinite(loss) else math.inf), (logits.argmax(-1) == held_y).float().mean().item()


def tune(run: Callable[[float], tuple[float, float]], middle: float) -> float:
    """The learning rate with the least loss on a grid of half decades that holds it in its inside."""
    losses: dict[int, float] = {}
    low, high = -2, 2
    while True:
        for exponent in range(low, high + 1):
            if exponent not in losses:
                losses[exponent] = run(middle * 10 ** (exponent / 2))[0]
        best = min(losses, key=lambda exponent: losses[exponent])
        if low < best < high:
            return middle * 10 ** (best / 2)
        low, high = min(low, best - 1), max(high, best + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of Fashion-MNIST; without it, the embedded digits")
    parser.add_argument("--text", help="a text file, for a Transformer instead")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, networks = of_text(arguments.text) if arguments.text else of_images(arguments.root)
    table = ["| network | optimizer | learning rate | loss | accuracy % |", "| --- | --- | --- | --- | --- |"]
    for network, make in networks.items():
        for name, (factory, middle) in OPTIMIZERS.items():

            def run(lr: float, seed: int = 0, make: Any = make, factory: Factory = factory) -> tuple[float, float]:
                return train(make, factory, lr, data, arguments.steps, arguments.batch_size, seed)

            lr = tune(run, middle)
            losses, accuracies = zip(*(run(lr, seed) for seed in range(1, arguments.seeds + 1)), strict=True)
            result = {"network": network, "optimizer": name, "lr": lr, "losses": losses, "accuracies": accuracies}
            print(json.dumps(result), flush=True)
            percent = [100 * accuracy for accuracy in accuracies]
            table.append(f"| {network} | {name} | {lr:.2g} | {spread(losses, 3)} | {spread(percent, 2)} |")
    print("\n".join(table))


def spread(values: Any, digits: int) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
