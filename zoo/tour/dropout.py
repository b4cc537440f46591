"""Dropout as bagging: means over masks, over scaled weights and over networks, and the rescaling that makes it work.

A network with n units that may be dropped is a bag of 2^n networks that share their weights (Srivastava et al. 2014,
JMLR 15). Their mean is approximated by one network with scaled weights, which is the geometric mean exactly if dropout
acts on the inputs of the softmax layer alone (Goodfellow et al. 2016, Deep Learning, section 7.12), or by the mean of K
random masks (Gal and Ghahramani 2016, arXiv 1506.02142). Bagging trains K networks on bootstrap samples (Breiman 1996).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.datamodules import FashionMNISTSubset
from zoo.errors import check_at_least, check_at_most, check_fraction, check_seed
from zoo.models.dropout import dropout_on
from zoo.models.mlp.network import DropoutMLP
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage
from zoo.seeding import stream_keys
from zoo.tour.optimizers import Batch, digits

WIDTH = 128
RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)


def clothes(n: int) -> tuple[Batch, Batch]:
    """The first `n` training images of the clothes in the package, (n, 1, 28, 28), and the 2,000 for validation."""
    data = FashionMNISTSubset()
    data.setup("fit")
    x, y = data.split("train")
    return (x[:n], y[:n]), data.split("val")


def bootstrap(batch: Batch, seed: int) -> Batch:
    """As many samples as the batch has, drawn from it with replacement."""
    x, y = batch
    index = torch.randint(len(x), (len(x),), generator=torch.Generator().manual_seed(seed))
    return x[index], y[index]


def train(
    batch: Batch, input_dropout: float, hidden_dropout: float, steps: int, depth: int = 2, seed: int = 0
) -> DropoutMLP:
    """Trains a network of `depth` hidden layers by Adam, learning rate 1e-3, mini-batches of 64; in eval mode."""
    torch.manual_seed(seed)
    model = DropoutMLP(batch[0].shape[1:], 10, WIDTH, depth, input_dropout, hidden_dropout)
    return fit(model, batch, steps)


def fit(model: DropoutMLP, batch: Batch, steps: int, lr: float = 1e-3) -> DropoutMLP:
    """Trains a network in place; returns it in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x, y = batch
    for _ in range(steps):
        index = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def log_probs(model: DropoutMLP, x: Tensor) -> Tensor:
    """Log-probabilities (N, C) with dropout off: weight scaling, since the zoo's dropout rescales in training."""
    return model(x).log_softmax(1)


def dropout_passes(model: DropoutMLP, x: Tensor, passes: int, seed: int = 0) -> Tensor:
    """Log-probabilities of passes with dropout on, (passes, N, C), with the masks of `Classifier(mc_seed=seed)`."""
    found = []
    for number in range(passes):
        with dropout_on(model, stream_keys(torch.arange(len(x)), seed, 0, number)):
            found.append(log_probs(model, x))
    return torch.stack(found)


def ensemble(batches: Sequence[Batch], x: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Log-probabilities (K, N, C) of K networks without dropout, each trained on its batch from a seed of its own."""
    networks = (train(batch, 0.0, 0.0, steps, seed=seed + k) for k, batch in enumerate(batches))
    return torch.stack([log_probs(network, x) for network in networks])


def mean_log_probs(members: Tensor) -> Tensor:
    """Logarithm of the mean probabilities of K members (K, N, C), (N, C)."""
    return members.logsumexp(0) - math.log(len(members))


def nll(log_p: Tensor, y: Tensor) -> float:
    """Negative log-likelihood of labels y (N,) in nats, of log-probabilities (N, C)."""
    return F.nll_loss(log_p, y).item()


def calibration_error(log_p: Tensor, y: Tensor) -> float:
    """Expected calibration error with 15 bins (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    p = log_p.exp().clamp_max(1 - 2**-24)  # torchmetrics puts probabilities of exactly 1 into a sixteenth bin
    return multiclass_calibration_error(p, y, num_classes=log_p.shape[1], n_bins=15).item()


def accuracy(log_p: Tensor, y: Tensor) -> float:
    """Fraction of labels that are the most probable class."""
    return (log_p.argmax(1) == y).float().mean().item()


def by_size(members: Tensor, y: Tensor, sizes: Iterable[int]) -> list[tuple[float, float]]:
    """NLL and calibration error of the mean of as many members; the average over disjoint groups of this size.

    Args:
        members: log-probabilities of all members, (K, N, C).
        y: labels, (N,).
        sizes: numbers of members, each at most K.
    """
    found = []
    for size in sizes:
        groups = [mean_log_probs(group) for group in members.split(size) if len(group) == size]
        pairs = [(nll(group, y), calibration_error(group, y)) for group in groups]
        found.append((sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs)))
    return found


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ..., up to `limit`."""
    return [2**power for power in range(limit.bit_length())]


def every_mask(model: DropoutMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the network under every mask of its n hidden units, without dropout of the input.

    Args:
        model: network of at most 16 hidden units in all, float64.
        x: samples, (N, ...).

    Returns:
        Log-probabilities (2^n, N, C), and the logarithm of each mask's probability, (2^n,).
    """
    dropouts = [layer for layer in model.hidden if isinstance(layer, nn.Dropout)]
    p, units = dropouts[0].p, model.output.in_features * len(dropouts)
    masks = (torch.arange(2**units).unsqueeze(1) >> torch.arange(units)).bitwise_and(1).double()
    parts = iter(masks.unsqueeze(1).split(model.output.in_features, dim=2))
    h = (x.flatten(1).double() + 1) / 2
    with torch.no_grad():
        for layer in model.hidden:
            h = h * next(parts) / (1 - p) if isinstance(layer, nn.Dropout) else layer(h)
        found = model.output(h).log_softmax(-1)
    kept = masks.sum(1)
    return found, kept * math.log(1 - p) + (units - kept) * math.log(p)


def means_over_masks(model: DropoutMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Geometric mean over all masks, normalized, and arithmetic mean: probabilities (N, C) each."""
    members, log_mask = every_mask(model, x)
    weights = log_mask.view(-1, 1, 1)
    return (weights.exp() * members).sum(0).softmax(1), (weights + members).logsumexp(0).exp()


def small_network(depth: int, units: int, dropout: float, steps: int, seed: int = 0) -> DropoutMLP:
    """Network of `units` hidden units in `depth` layers that was trained on the digits with dropout, float64."""
    torch.manual_seed(seed)
    model = DropoutMLP((1, 8, 8), 10, units // depth, depth, input_dropout=0.0, hidden_dropout=dropout)
    return fit(model, digits(), steps, lr=1e-2).double()


@contextmanager
def without_rescaling(model: DropoutMLP) -> Iterator[None]:
    """In eval mode, the network that was trained without the factor 1 / (1 - p) and is used as if nothing were missing.

    Its weights, learned for the sums of what is kept, are 1 / (1 - p) times those learned with the factor.
    """

    def enlarge(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output / (1 - layer.p)

    handles = [layer.register_forward_hook(enlarge) for layer in model.modules() if isinstance(layer, nn.Dropout)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_sums(model: DropoutMLP, x: Tensor) -> list[Tensor]:
    """What each linear layer computes from x in the state that the network is in, (N, width) each."""
    found: list[Tensor] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(lambda layer, inputs, output: found.append(output)) for layer in layers]
    try:
        log_probs(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def scales(model: DropoutMLP, x: Tensor, passes: int, rescale: bool) -> list[float]:
    """Size of the sums of each linear layer in evaluation, in units of their mean over dropout masks in training.

    Args:
        model: network in eval mode.
        x: samples, (N, ...).
        passes: number of masks.
        rescale: False for the network of `without_rescaling`.
    """
    totals: list[Tensor] = []
    for number in range(passes):
        with dropout_on(model, stream_keys(torch.arange(len(x)), 0, number)):
            sums = layer_sums(model, x)
        totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
    if rescale:
        evaluated = layer_sums(model, x)
    else:
        with without_rescaling(model):
            evaluated = layer_sums(model, x)
    means = [total / passes for total in totals]
    return [((e * m).sum() / (m * m).sum()).item() for e, m in zip(evaluated, means, strict=True)]


def draw(
    images: int = 300,
    steps: int = 400,
    passes: int = 64,
    networks: int = 8,
    seeds: int = 2,
    input_dropout: float = 0.2,
    hidden_dropout: float = 0.5,
    seed: int = 0,
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        images: number of training images of clothes.
        steps: training steps of each network.
        passes: largest number of passes with dropout on.
        networks: largest number of networks in a bag or in an ensemble.
        seeds: number of networks for each dropout rate; their mean is shown.
        input_dropout: probability that a pixel is dropped.
        hidden_dropout: probability that a hidden unit is dropped.
        seed: random seed.
    """
    check_at_least(10, images=images)
    check_at_least(1, steps=steps, passes=passes, networks=networks, seeds=seeds)
    check_fraction(input_dropout=input_dropout, hidden_dropout=hidden_dropout)
    check_at_least(0.05, hidden_dropout=hidden_dropout)
    check_at_most(10_000, images=images)
    check_at_most(1000, passes=passes)
    check_at_most(0.95, input_dropout=input_dropout, hidden_dropout=hidden_dropout)
    check_at_most(100, networks=networks)
    check_seed(seed=seed)
    batch, held_out = clothes(images)
    figure, axes = new_figure(6, size=3.4, columns=2)
    model = train(batch, input_dropout, hidden_dropout, steps, seed=seed)
    resampled = [bootstrap(batch, seed + k) for k in range(networks)]
    members = {
        "dropout, K masks": dropout_passes(model, held_out[0], passes),
        "bagging, K networks": ensemble(resampled, held_out[0], steps, seed),
        "K networks, all images": ensemble([batch] * networks, held_out[0], steps, seed),
    }
    _plot_means(axes[0], axes[1], members, log_probs(model, held_out[0]), held_out[1])
    _plot_masks(axes[2], hidden_dropout, steps, seed)
    _plot_rates(axes[3], axes[4], batch, held_out, input_dropout, steps, range(seed, seed + seeds))
    deep = train(batch, input_dropout, hidden_dropout, steps, depth=4, seed=seed)
    _plot_scales(axes[5], deep, held_out, input_dropout, hidden_dropout)
    return render_figure(figure)


def _plot_means(left: Any, right: Any, members: dict[str, Tensor], scaled: Tensor, y: Tensor) -> None:
    """NLL and calibration error against the number of members, beside those of scaled weights (N, C)."""
    for (name, log_p), color, marker in zip(members.items(), PALETTE, "os^", strict=False):
        sizes = powers_of_two(len(log_p))
        for ax, values in zip((left, right), zip(*by_size(log_p, y, sizes), strict=True), strict=True):
            ax.plot(sizes, values, color=color, marker=marker, markersize=4, label=name)
    ticks = powers_of_two(max(map(len, members.values())))
    for ax, value in ((left, nll(scaled, y)), (right, calibration_error(scaled, y))):
        ax.axhline(value, color="black", linestyle="--", linewidth=1, label="dropout, scaled weights")
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(size) for size in ticks])
        ax.set(xlabel="number K of masks or networks", ylim=(0, None))
    left.set_title("negative log-likelihood", fontsize="medium")
    right.set_title("calibration error", fontsize="medium")
    left.set(ylabel="nats per image")
    right.set(ylabel="ECE")
    left.legend(fontsize="x-small", loc="lower left")


def _plot_masks(ax: Any, dropout: float, steps: int, seed: int, units: int = 12, shown: int = 30) -> None:
    x = digits()[0][:shown]
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    one, two = (small_network(depth, units, dropout, steps, seed) for depth in (1, 2))
    (geometric, arithmetic), of_two = means_over_masks(one, x), means_over_masks(two, x)[0]
    series = (
        ("arithmetic mean, softmax layer", one, arithmetic, PALETTE[4], "^"),
        ("geometric mean, two hidden layers", two, of_two, PALETTE[1], "s"),
        ("geometric mean, softmax layer", one, geometric, PALETTE[0], "o"),
    )
    for name, model, mean, color, marker in series:
        scaled = log_probs(model, x.double()).exp()
        error = (scaled - mean).abs().max()
        label = f"{name}: off by {error:.0e}" if error < 1e-3 else f"{name}: off by {error:.2f}"
        ax.plot(scaled.flatten(), mean.flatten(), marker, color=color, markersize=3, label=label)
    ax.set(xlabel="probability with scaled weights", ylabel=f"mean over all {2**units} masks", ylim=(-0.02, 1.5))
    ax.set_title(f"{units} units that may be dropped, digits", fontsize="medium")
    ax.legend(fontsize="x-small", loc="upper left")


def _plot_rates(
    left: Any, right: Any, batch: Batch, held_out: Batch, input_dropout: float, steps: int, seeds: Sequence[int]
) -> None:
    """NLL and accuracy against the dropout rate, with scaled weights; means over the seeds."""
    designs: dict[str, Sequence[tuple[float, float]]] = {
        "hidden layers": [(0.0, rate) for rate in RATES],
        f"hidden layers, {input_dropout:g} on the input": [(input_dropout, rate) for rate in RATES],
        "input alone": [(rate, 0.0) for rate in RATES],
    }

    @lru_cache
    def quality(rates: tuple[float, float]) -> tuple[float, float]:
        x, y = held_out
        found = [log_probs(train(batch, *rates, steps, seed=seed), x) for seed in seeds]
        return sum(nll(p, y) for p in found) / len(found), sum(accuracy(p, y) for p in found) / len(found)

    for (name, pairs), color, marker in zip(designs.items(), PALETTE, "os^", strict=False):
        for ax, values in zip((left, right), zip(*map(quality, pairs), strict=True), strict=True):
            ax.plot(RATES, values, color=color, marker=marker, markersize=4, label=name)
    left.set_title(f"NLL after {steps} steps on {len(batch[0])} images", fontsize="medium")
    right.set_title("accuracy of the same networks", fontsize="medium")
    left.set(xlabel="dropout rate", ylabel="nats per image", ylim=(0, None))
    right.set(xlabel="dropout rate", ylabel="accuracy")
    left.legend(fontsize="x-small", loc="lower left")


def _plot_scales(ax: Any, model: DropoutMLP, held_out: Batch, input_dropout: float, hidden_dropout: float) -> None:
    x, y = held_out
    places = range(1, len(model.hidden) // 3 + 2)
    scaled = log_probs(model, x)
    with without_rescaling(model):
        forgotten = log_probs(model, x)
    series = ((True, scaled, "with 1 / (1 - p)", PALETTE[0]), (False, forgotten, "without", PALETTE[1]))
    for rescale, log_p, name, color in series:
        label = f"{name}: NLL {nll(log_p, y):.2f}"
        ax.plot(places, scales(model, x[:100], 40, rescale), "o-", color=color, markersize=4, label=label)
    law = [1 / ((1 - input_dropout) * (1 - hidden_dropout) ** (place - 1)) for place in places]
    ax.plot(places, law, "k--", linewidth=1, label="product of 1 / (1 - p)")
    ax.set_title("sums in evaluation / mean in training", fontsize="medium")
    ax.set(yscale="log", xlabel="linear layer, from input to output", xticks=list(places))
    ax.legend(fontsize="x-small", loc="upper left")
