"""The vanishing gradient in one figure: what depth does to the gradient, and what the remedies do about it.

Networks of the ResNet family with 18 and with 54 convolutions in their blocks; plain, with batch normalization, with
shortcuts, with both; from torch's default initialization and from He's. The figure shows the norm of the gradient in
every layer before training, and the accuracy on the validation split after it. SGD with momentum 0.9 trains every
network twice, with the learning rates 0.1 and 0.01 (warm-up over a tenth of the steps, cosine decay), and the one with
the smaller training loss counts: an optimizer that rescales gradients, as Adam does, would hide part of the matter.
Run it as

    python benchmarks/vanishing_gradient.py --out vanishing_gradient.png
    python benchmarks/vanishing_gradient.py --root data --out vanishing_gradient.png  # on Fashion-MNIST

Each network is a line of JSON as soon as it is done, with the verdict of `zoo.gradients.verdict` on its convolutions.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.datamodules import Digits, FashionMNIST
from zoo.gradients import execution_order, gradient_profile, verdict
from zoo.models.resnet.network import BLOCK_TYPES, INITS, ResNet
from zoo.optim import WarmupDecay
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import save_png

DEPTHS = (20, 56)  # 18 and 54 convolutions in the blocks, one before and a linear layer after them
RATES = (0.1, 0.01)
NAMES = {"default": "torch's default", "he": "He's"}
WIDTH = 16  # of all three stages, so that layers of all depths have gradients of equally many numbers

Split = tuple[Tensor, Tensor]


def profile(network: ResNet, x: Tensor, y: Tensor) -> list[float]:
    """Norm of the gradient in each convolution of the blocks, by depth, on one batch."""
    with execution_order(network) as order:
        loss = F.cross_entropy(network(x), y)
    loss.backward()
    norms = [norm for name, norm in gradient_profile(network, order) if name.startswith("blocks")]
    network.zero_grad()
    return norms


def train(network: ResNet, data: Split, rate: float, steps: int, batch: int) -> float:
    """Trains by SGD; returns the mean loss of the last tenth of the steps, infinite where it diverged."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    scheduler = WarmupDecay(optimizer, warmup_steps=0.1, final=0.0, shape="cosine", total_steps=steps)
    losses = []
    for _ in range(steps):
        index = torch.randint(len(data[0]), (batch,))
        loss = F.cross_entropy(network(data[0][index]), data[1][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return math.inf
    return statistics.mean(losses[-max(1, steps // 10) :])


@torch.no_grad()
def accuracy(network: ResNet, data: Split) -> float:
    network.eval()
    logits = torch.cat([network(x) for x in data[0].split(500)])
    return (logits.argmax(1) == data[1]).float().mean().item()


def measure(
    depth: int, kind: str, init: str, seed: int, patch: int, splits: dict[str, Split], steps: int, batch: int
) -> dict[str, Any]:
    """Everything about one network: its profile before training, and how well it trains."""
    results = []
    for rate in RATES:
        torch.manual_seed(seed)
        x, y = splits["train"]
        network = ResNet(x.shape[1], 10, depth, (WIDTH,) * 3, kind, init, patch)
        index = torch.randint(len(x), (batch,))
        norms = profile(network, x[index], y[index])
        said = str(verdict(norms, [p.norm().item() for p in network.blocks.parameters() if p.ndim == 4]))
        loss = train(network, splits["train"], rate, steps, batch)
        results.append((loss, accuracy(network, splits["val"]), rate))
    loss, reached, rate = min(results)
    network_name = {"depth": depth - 2, "block_type": kind, "init": init, "seed": seed}
    return network_name | {"accuracy": reached, "loss": loss, "rate": rate, "verdict": said, "gradient": norms}


def plot(results: list[dict[str, Any]], chance: float, title: str) -> Any:
    """Rows: initializations; columns: profiles of both depths, accuracies."""
    figure, panels = new_figure(3 * len(INITS), size=3.5)
    colors = dict(zip(BLOCK_TYPES, ("tab:gray", "tab:orange", "tab:green", "tab:blue"), strict=True))
    depths = sorted({result["depth"] for result in results})
    for row, init in enumerate(INITS):
        axes = panels[3 * row : 3 * row + 3]
        for ax, depth in zip(axes, depths, strict=False):
            for kind in BLOCK_TYPES:
                _plot_profile(
                    ax, [r for r in results if (r["depth"], r["kind"], r["init"]) == (depth, kind, init)], colors
                )
            ax.set(yscale="log", title=f"{depth} convolutions, {NAMES[init]} initialization")
            ax.set(xlabel="depth, from input to output", ylabel="gradient norm before training")
            ax.grid(True, alpha=0.3)
        axes[0].legend(fontsize="small")
        _plot_accuracy(axes[2], [r for r in results if r["init"] == init], depths, colors, chance)
        axes[2].set(title=f"after training, {NAMES[init]} initialization", ylabel="validation accuracy %")
    figure.suptitle(title, fontsize="medium")
    return render_figure(figure)


def _plot_profile(ax: Any, results: list[dict[str, Any]], colors: dict[str, str]) -> None:
    norms = [statistics.median(values) for values in zip(*(r["gradient"] for r in results), strict=True)]
    shown = [norm if norm > 0 else math.nan for norm in norms]
    zeros = sum(norm == 0 for norm in norms)
    kind = results[0]["kind"]
    label = kind.replace("_", " ") + (f" (zero in {zeros} layers)" if zeros else "")
    ax.plot(range(1, len(norms) + 1), shown, marker=".", markersize=4, color=colors[kind], label=label)


def _plot_accuracy(
    ax: Any, results: list[dict[str, Any]], depths: list[int], colors: dict[str, str], chance: float
) -> None:
    for place, (depth, kind) in enumerate(product(depths, BLOCK_TYPES)):
        values = [100 * r["accuracy"] for r in results if (r["depth"], r["kind"]) == (depth, kind)]
        mean = statistics.mean(values)
        ax.bar(place + (depth != depths[0]), mean, color=colors[kind])
        ax.text(place + (depth != depths[0]), mean + 1, f"{mean:.0f}", ha="center", fontsize="small")
    ax.axhline(100 * chance, color="black", linestyle="--", linewidth=1, label="chance")
    ax.set_xticks([1.5, 6.5], [f"{depth} convolutions" for depth in depths])
    ax.set_ylim(0, 119)
    ax.legend(fontsize="small", loc="upper left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of Fashion-MNIST; without it, the embedded digits")
    parser.add_argument("--out", type=Path, default=Path("vanishing_gradient.png"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out {arguments.out} exists already")
    torch.set_num_threads(1)
    data = FashionMNIST(root=arguments.root) if arguments.root else Digits()
    data.setup("validate")
    splits = {name: data.split(name) for name in ("train", "val")}
    patch = 2 if arguments.root else 1
    results = []
    for depth, init, kind, seed in product(DEPTHS, INITS, BLOCK_TYPES, range(arguments.seeds)):
        result = measure(depth, kind, init, seed, patch, splits, arguments.steps, arguments.batch_size)
        print(json.dumps(result | {"gradient": [float(f"{norm:.3g}") for norm in result["gradient"]]}), flush=True)
        results.append(result)
    title = f"{type(data).__name__}, {arguments.steps} steps of {arguments.batch_size}, {arguments.seeds} seed(s)"
    save_png(arguments.out, plot(results, 1 / data.num_classes, title))
    print(f"the figure is in {arguments.out}")


if __name__ == "__main__":
    main()
