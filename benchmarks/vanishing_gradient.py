"""Vanishing gradients in one figure: gradient norms by depth, by initialization, batch norm and shortcuts.

Networks of the ResNet family with 18 and with 54 convolutions in their blocks: plain, with batch normalization, with
shortcuts, with both; with torch's default initialization and with He's. The figure shows the gradient norm of each
convolution before training, and the validation accuracy after it. SGD with momentum 0.9 trains every network with the
learning rates 0.1 and 0.01 (warm-up over a tenth of the steps, cosine decay); the run with the lower training loss
counts. An optimizer that rescales gradients, such as Adam, would hide part of the effect. Usage:

    python -m benchmarks.vanishing_gradient --out vanishing_gradient.png
    python -m benchmarks.vanishing_gradient --root data --out vanishing_gradient.png  # on Fashion-MNIST

Each network prints a line of JSON with the verdict of `zoo.gradients.verdict` on its convolutions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import image_data
from benchmarks.output import check_new, markdown_table, mean_std, new_parser, report
from zoo.gradients import execution_order, first_last_ratio, gradient_profile, verdict
from zoo.models.resnet.network import BLOCK_TYPES, INITS, CIFARResNet
from zoo.optim import WarmupDecay
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import save_png

DEPTHS = (20, 56)  # layers: 18 and 54 convolutions in the blocks, one before them, and a linear layer
LEARNING_RATES = (0.1, 0.01)
NAMES = {"default": "torch's default", "he": "He's"}
WIDTH = 16  # channels of all stages, so that the gradients of all layers have equally many components

Split = tuple[Tensor, Tensor]


def profile(network: CIFARResNet, x: Tensor, y: Tensor) -> list[float]:
    """Gradient norm of each convolution in the blocks, by depth, on one batch."""
    with execution_order(network) as order:
        loss = F.cross_entropy(network(x), y)
    loss.backward()
    norms = [norm for name, norm in gradient_profile(network, order) if name.startswith("blocks")]
    network.zero_grad()
    return norms


def train(network: CIFARResNet, data: Split, lr: float, steps: int, batch_size: int) -> float:
    """Trains by SGD; returns the mean loss of the last tenth of the steps, infinite if it diverged."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    scheduler = WarmupDecay(optimizer, warmup_steps=0.1, final=0.0, shape="cosine", total_steps=steps)
    losses = []
    for _ in range(steps):
        index = torch.randint(len(data[0]), (batch_size,))
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
def accuracy(network: CIFARResNet, data: Split) -> float:
    """Accuracy on a split."""
    network.eval()
    logits = torch.cat([network(x) for x in data[0].split(500)])
    return (logits.argmax(1) == data[1]).float().mean().item()


def measure(
    network_options: dict[str, Any], seed: int, splits: dict[str, Split], steps: int, batch_size: int
) -> dict[str, Any]:
    """Gradient profile of a network before training, and its results after training with the better learning rate.

    Args:
        network_options: `depth`, `block_type`, `init` and `patch_size` of the ResNet.
        seed: random seed.
        splits: training and validation split.
        steps: training steps.
        batch_size: images per batch.
    """
    x, y = splits["train"]
    results = []
    for lr in LEARNING_RATES:
        torch.manual_seed(seed)
        network = CIFARResNet(tuple(x.shape[1:]), 10, widths=(WIDTH,) * 3, **network_options)
        index = torch.randint(len(x), (batch_size,))
        norms = profile(network, x[index], y[index])
        said = str(verdict(norms, [p.norm().item() for p in network.blocks.parameters() if p.ndim == 4]))
        loss = train(network, splits["train"], lr, steps, batch_size)
        results.append((loss, accuracy(network, splits["val"]), lr))
    loss, reached, lr = min(results)
    return {"accuracy": reached, "loss": loss, "lr": lr, "verdict": said, "gradient": norms}


def select(results: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """Results with these values."""
    return [result for result in results if values.items() <= result.items()]


def plot(results: list[dict[str, Any]], chance: float, title: str) -> Any:
    """One row per initialization: gradient profiles of both depths, and accuracies."""
    figure, panels = new_figure(3 * len(INITS), size=3.5)
    colors = dict(zip(BLOCK_TYPES, ("tab:gray", "tab:orange", "tab:green", "tab:blue"), strict=True))
    depths = sorted({result["depth"] for result in results})
    for row, init in enumerate(INITS):
        axes = panels[3 * row : 3 * row + 3]
        for ax, depth in zip(axes, depths, strict=False):
            for block_type in BLOCK_TYPES:
                _plot_profile(ax, select(results, depth=depth, block_type=block_type, init=init), colors)
            ax.set(yscale="log", title=f"{depth} convolutions, {NAMES[init]} initialization")
            ax.set(xlabel="depth, from input to output", ylabel="gradient norm before training")
            ax.grid(True, alpha=0.3)
        axes[0].legend(fontsize="small")
        _plot_accuracy(axes[2], select(results, init=init), depths, colors, chance)
        axes[2].set(title=f"after training, {NAMES[init]} initialization", ylabel="validation accuracy %")
    figure.suptitle(title, fontsize="medium")
    return render_figure(figure)


def _plot_profile(ax: Any, results: list[dict[str, Any]], colors: dict[str, str]) -> None:
    norms = [statistics.median(values) for values in zip(*(r["gradient"] for r in results), strict=True)]
    shown = [norm if norm > 0 else math.nan for norm in norms]
    zeros = sum(norm == 0 for norm in norms)
    block_type = results[0]["block_type"]
    label = block_type.replace("_", " ") + (f" (zero in {zeros} layers)" if zeros else "")
    ax.plot(range(1, len(norms) + 1), shown, marker=".", markersize=4, color=colors[block_type], label=label)


def _plot_accuracy(
    ax: Any, results: list[dict[str, Any]], depths: list[int], colors: dict[str, str], chance: float
) -> None:
    for place, (depth, block_type) in enumerate(product(depths, BLOCK_TYPES)):
        values = [100 * result["accuracy"] for result in select(results, depth=depth, block_type=block_type)]
        mean = statistics.mean(values)
        ax.bar(place + (depth != depths[0]), mean, color=colors[block_type])
        ax.text(place + (depth != depths[0]), mean + 1, f"{mean:.0f}", ha="center", fontsize="small")
    ax.axhline(100 * chance, color="black", linestyle="--", linewidth=1, label="chance")
    ax.set_xticks([1.5, 6.5], [f"{depth} convolutions" for depth in depths])
    ax.set_ylim(0, 119)
    ax.legend(fontsize="small", loc="upper left")


def table(results: list[dict[str, Any]]) -> str:
    """Gradient ratio before training, and validation accuracy, mean and standard deviation over the seeds."""
    rows = []
    for depth, init, block_type in dict.fromkeys((r["depth"], r["init"], r["block_type"]) for r in results):
        chosen = select(results, depth=depth, init=init, block_type=block_type)
        ratio = statistics.median(first_last_ratio(result["gradient"]) for result in chosen)
        percent = mean_std([100 * result["accuracy"] for result in chosen], 1)
        rows.append([str(depth), NAMES[init], block_type, f"{ratio:.2g}", percent])
    return markdown_table(["convolutions", "initialization", "block type", "first / last gradient", "accuracy %"], rows)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--root", help="folder of Fashion-MNIST (default: the embedded digits instead)")
    parser.add_argument("--out", type=Path, default=Path("vanishing_gradient.png"), help=".png file for the figure")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each network")
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch")
    parser.add_argument("--seeds", type=int, default=1, help="number of random seeds")
    options = parser.parse_args(args)
    check_new(parser, options.out)
    torch.set_num_threads(1)
    data = image_data(options.root)
    data.setup("validate")
    splits = {name: data.split(name) for name in ("train", "val")}
    patch_size = 2 if options.root else 1
    results = []
    for depth, init, block_type, seed in product(DEPTHS, INITS, BLOCK_TYPES, range(options.seeds)):
        network_options = {"depth": depth, "block_type": block_type, "init": init, "patch_size": patch_size}
        result: dict[str, Any] = {"depth": depth - 2, "block_type": block_type, "init": init, "seed": seed}
        result |= measure(network_options, seed, splits, options.steps, options.batch_size)
        row = f"{result['depth']} convolutions, {init}, {block_type}"
        found = {name: result[name] for name in ("accuracy", "loss", "lr", "verdict")}
        report(row, seed, **found, gradient=[float(f"{norm:.3g}") for norm in result["gradient"]])
        results.append(result)
    title = f"{type(data).__name__}, {options.steps} steps of {options.batch_size} images, {options.seeds} seed(s)"
    save_png(options.out, plot(results, 1 / data.num_classes, title))
    print(table(results))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
