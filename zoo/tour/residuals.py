"""Residual blocks and batch normalization: depth, blocks that are left out, and what the layers respond to.

Deeper plain networks have a higher training error, residual ones have not (He et al. 2016, arXiv 1512.03385, figures 1
and 6). A residual network does without any of its blocks, a plain one does not (Veit et al. 2016, arXiv 1605.06431,
section 4.1). What a channel responds to is shown by the pictures that excite it most (Zeiler and Fergus 2014, arXiv
1311.2901, figure 2). Batch normalization is in `zoo.tour.batch_norm`.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.datamodules import Digits, FashionMNISTSubset
from zoo.errors import check_at_least, check_at_most, check_seed
from zoo.hub.loading import load
from zoo.models.resnet.network import Block, CIFARResNet, PooledResNet, PooledStage, Shortcut
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage, show_images
from zoo.tour.batch_norm import plot_noise, plot_rates, plot_scales
from zoo.tour.generative_classifier import accuracy
from zoo.tour.optimizers import Batch

BLOCK_TYPES = {"plain": "batch_norm", "residual": "residual_batch_norm"}
WIDTH = 16


# Depth


def depths(blocks: int) -> list[int]:
    """Blocks per stage of the networks that are trained, ascending: one, half of the most, and the most."""
    return sorted({1, max(1, blocks // 2), blocks})


def train(
    block_type: str, blocks: int, batch: Batch, steps: int, seed: int = 0, lr: float = 0.1
) -> tuple[CIFARResNet, list[float]]:
    """Trains a convolutional network of 6 blocks + 2 layers, with batch normalization.

    Args:
        block_type: "plain" or "residual".
        blocks: blocks in each of the three stages.
        batch: training pictures and labels.
        steps: steps of SGD with momentum, on 64 pictures each; the learning rate rises and falls.
        seed: random seed.
        lr: highest learning rate.

    Returns:
        The network in eval mode, and its error on each mini-batch before the step.
    """
    x, y = batch
    torch.manual_seed(seed)
    model = CIFARResNet(x.shape[1:], 10, 6 * blocks + 2, [WIDTH] * 3, BLOCK_TYPES[block_type])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    errors = []
    for _ in range(steps):
        index = torch.randint(len(x), (64,))
        logits = model(x[index])
        errors.append((logits.argmax(1) != y[index]).double().mean().item())
        optimizer.zero_grad()
        F.cross_entropy(logits, y[index]).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), errors


# Blocks that are left out


class Nothing(nn.Module):
    """A block F(x, w) without effect: zeros, of the shape of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def without_block(network: CIFARResNet | PooledResNet, index: int) -> nn.Module:
    """A copy of a network in which only the shortcut is left of a block; a plain block becomes the shortcut, too."""
    network = copy.deepcopy(network)
    if isinstance(network, CIFARResNet):
        block = network.blocks[index]
        assert isinstance(block, Block)
        added, stride = block.conv2.out_channels - block.conv1.in_channels, block.conv1.stride[0]
        network.blocks[index] = Shortcut(added, stride)  # of values after a ReLU, so the last ReLU changes nothing
        return network
    stages = stages_of(network)
    stage, place = divmod(index, len(stages[0].blocks))
    stages[stage].blocks[place] = Nothing()
    return network


def stages_of(network: PooledResNet) -> list[PooledStage]:
    """The stages of a pooled network."""
    return [stage for stage in network.stages if isinstance(stage, PooledStage)]


def count_blocks(network: CIFARResNet | PooledResNet) -> int:
    """Number of blocks of a network."""
    if isinstance(network, CIFARResNet):
        return len(network.blocks)
    return sum(len(stage.blocks) for stage in stages_of(network))


def accuracies_without(network: CIFARResNet | PooledResNet, batch: Batch) -> list[float]:
    """Accuracies of a network, in eval mode, without each of its blocks in turn."""
    return [accuracy(without_block(network, index), batch) for index in range(count_blocks(network))]


# What layers respond to


class Field(NamedTuple):
    """Receptive fields of the units of a layer, squares of pixels.

    Attributes:
        start: first pixel of the field of the first unit; negative if it is in the padding.
        step: distance of the fields of neighboring units, in pixels.
        size: side of a field, in pixels.
    """

    start: int
    step: int
    size: int


def receptive_fields(network: PooledResNet) -> list[Field]:
    """Receptive fields of the first convolution and of the output of each stage."""
    fields = [Field(0, 1, 2)]  # a 2x2 convolution without padding
    for stage in stages_of(network):
        start, step, size = fields[-1]
        start, size = start - step, size + 2 * step  # a 3x3 convolution
        size, step = size + step, 2 * step  # pooling by 2
        for _ in stage.blocks:
            start, size = start - step, size + 2 * step
        fields.append(Field(start, step, size))
    return fields


@torch.no_grad()
def activations(network: PooledResNet, x: Tensor, layer: int) -> Tensor:
    """Outputs (N, C, H, W) of the first convolution, for layer 0, or of a stage, after their ReLUs."""
    h = network.stem(x)
    for stage in network.stages[:layer]:
        h = stage(h)
    return h


def strongest(outputs: Tensor, channel: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures that excite a channel most, and where: indices of pictures, rows and columns of units, (count,)."""
    values, places = outputs[:, channel].flatten(1).max(1)
    chosen = values.topk(min(count, len(values))).indices
    return chosen, places[chosen] // outputs.shape[3], places[chosen] % outputs.shape[3]


def selective_channels(outputs: Tensor, count: int, top: int = 8) -> list[int]:
    """Channels whose largest responses exceed their average one by most, each on pictures of its own.

    Args:
        outputs: outputs of a layer, (N, C, H, W).
        count: number of channels, at most.
        top: number of pictures that excite a channel most; two channels share at most a quarter of them.
    """
    largest = outputs.amax((2, 3))
    values, pictures = largest.topk(min(top, len(largest)), dim=0)
    ratio = values.mean(0) / largest.mean(0).clamp_min(1e-6)
    alive = largest.mean(0) > 0.05 * largest.mean()
    chosen: list[int] = []
    for channel in ratio.where(alive, ratio.new_zeros(())).argsort(descending=True).tolist():
        own = pictures[:, channel]
        if len(chosen) < count and all(torch.isin(own, pictures[:, c]).sum() <= top // 4 for c in chosen):
            chosen.append(channel)
    return chosen


def crops(x: Tensor, rows: Tensor, columns: Tensor, field: Field) -> Tensor:
    """Receptive fields cut out of pictures `x` (N, C, H, W), black outside of them, (N, C, size, size).

    Args:
        x: pictures.
        rows: row of the unit of each picture, (N,).
        columns: column of the unit of each picture, (N,).
        field: receptive fields of the units.
    """
    margin = field.size
    padded = F.pad(x, (margin,) * 4, value=-1.0)
    found = []
    for picture, row, column in zip(padded, rows.tolist(), columns.tolist(), strict=True):
        top, left = (margin + field.start + field.step * place for place in (row, column))
        found.append(picture[:, top : top + field.size, left : left + field.size])
    return torch.stack(found)


def draw(
    blocks: int = 7, steps: int = 200, images: int = 1000, rate_steps: int = 100, rates: int = 13, seed: int = 0
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        blocks: blocks in each of the three stages of the deepest network, which has 6 blocks + 2 layers.
        steps: training steps of the convolutional networks.
        images: number of clothes in which the most exciting ones are looked for, and test pictures for accuracies.
        rate_steps: training steps for each learning rate.
        rates: number of learning rates, from 1e-3 to 100.
        seed: random seed.
    """
    check_at_least(2, blocks=blocks, rates=rates)
    check_at_least(1, steps=steps, rate_steps=rate_steps)
    check_at_least(20, images=images)
    check_at_most(18, blocks=blocks)
    check_at_most(2000, images=images)
    check_at_most(100, rates=rates)
    check_at_most(100_000, steps=steps, rate_steps=rate_steps)
    check_seed(seed=seed)
    digits, clothes = Digits(), FashionMNISTSubset()
    digits.setup(None)
    clothes.setup("predict")
    training, test = digits.split("train"), digits.split("test")
    x, y = clothes.split("test")
    classifier = load("resnet-fashion-mnist")
    network: PooledResNet = (classifier.ema or classifier).network
    figure, axes = new_figure(6, size=3.4, columns=2)
    networks = _plot_depth(axes[0], training, blocks, steps, seed)
    _plot_left_out(axes[1], networks, blocks, test, network, (x[:images], y[:images]))
    _plot_responses(axes[2], network, x[:images])
    plot_rates(axes[3], training, torch.logspace(-3, 2, rates).tolist(), rate_steps, seed)
    plot_scales(axes[4], training, seed)
    plot_noise(axes[5], training, 500, seed)
    return render_figure(figure)


def _plot_depth(ax: Any, batch: Batch, blocks: int, steps: int, seed: int) -> dict[str, CIFARResNet]:
    """Training errors by type and depth; returns the networks, by their names."""
    window = max(1, steps // 10)
    networks = {}
    for count, color in zip(depths(blocks), PALETTE, strict=False):
        for name, style in (("plain", "--"), ("residual", "-")):
            label = f"{name}, {6 * count + 2} layers"
            networks[label], errors = train(name, count, batch, steps, seed)
            smooth = torch.tensor(errors).unfold(0, window, 1).mean(1)
            ax.plot(range(window, steps + 1), 100 * smooth, style, color=color, linewidth=1.3, label=label)
    ax.set(xlabel="step", ylabel="training error, %", ylim=(0, 95))
    ax.set_title("digits: plain networks get worse with depth", fontsize="medium")
    ax.legend(fontsize="x-small", loc="center right", bbox_to_anchor=(1, 0.38))
    return networks


def _plot_left_out(
    ax: Any, networks: dict[str, CIFARResNet], blocks: int, test: Batch, shipped: PooledResNet, clothes: Batch
) -> None:
    middle, deepest = (6 * count + 2 for count in depths(blocks)[-2:])
    names = (f"plain, {middle} layers", f"residual, {middle} layers", f"residual, {deepest} layers")
    found: list[tuple[str, CIFARResNet | PooledResNet, Batch]] = [
        *((name, networks[name], test) for name in names),
        ("resnet-fashion-mnist", shipped, clothes),
    ]
    colors = (PALETTE[1], PALETTE[5], PALETTE[0], PALETTE[2])
    for (name, network, batch), color, marker in zip(found, colors, "s^od", strict=True):
        whole, values = accuracy(network, batch), accuracies_without(network, batch)
        places = [(index + 0.5) / len(values) for index in range(len(values))]
        ax.plot(places, values, marker, color=color, markersize=4, label=f"{name}: {len(values)} blocks")
        ax.axhline(whole, color=color, linewidth=1)
    ax.set(xlabel="place of the block, from input to output", ylabel="test accuracy", ylim=(0, 1.03))
    ax.set_title("one block left out; lines: none", fontsize="medium")
    ax.legend(fontsize="x-small", loc="center right", bbox_to_anchor=(1, 0.5))


def _plot_responses(ax: Any, network: PooledResNet, x: Tensor, columns: int = 10, side: int = 28) -> None:
    fields = receptive_fields(network)
    first = network.stem[1]
    assert isinstance(first, nn.Conv2d)
    filters = first.weight.detach()[:columns, :1]
    filters = 0.8 * filters / filters.abs().amax((1, 2, 3), keepdim=True)
    blank = torch.ones(columns - len(filters), 1, side, side)
    rows, names = [torch.cat([_enlarged(filters, side), blank])], ["filters"]
    for layer, field in enumerate(fields[1:], 1):
        outputs = activations(network, x, layer)
        for channel in selective_channels(outputs, 2):
            chosen, row, column = strongest(outputs, channel, columns)
            whole = field.size > min(x.shape[2:])
            cut = x[chosen] if whole else crops(x[chosen], row, column, field)
            rows.append(_enlarged(cut, side))
            names.append(f"stage {layer}")
    show_images(ax, rows, (), names, "first filters; what excites a channel most")


def _enlarged(x: Tensor, side: int) -> Tensor:
    """Pictures (N, C, h, w) resized to (N, C, side, side), each pixel a square."""
    return F.interpolate(x, (side, side), mode="nearest")
