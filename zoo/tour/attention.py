"""Attention: what trained heads look at, why scores are divided by sqrt(d), and what it knows of order and distance.

Attention is older than the Transformer: Bahdanau et al. 2014 (arXiv 1409.0473) put it between two recurrent networks;
Vaswani et al. 2017 (arXiv 1706.03762) left the recurrent networks out. Heads that look at the previous token, or at
what followed an earlier occurrence of this one, are those of Olsson et al. 2022 (arXiv 2209.11895).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.datamodules.sequences import decode, encode
from zoo.errors import UserError, check_at_least, check_at_most, check_seed
from zoo.models.transformer.attention import record_attention
from zoo.models.transformer.blocks import TransformerStack
from zoo.models.transformer.positions import PosEncoding
from zoo.plotting.figures import PALETTE, new_figure, render_figure
from zoo.plotting.images import RGBImage

LANGUAGE_MODEL, REVERSAL_MODEL = "transformer-shakespeare", "seq2seq-reverse"
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
Cell = Literal["RNN", "LSTM", "attention"]
Pattern = Literal["previous", "last_space", "same_letter", "successor"]


def language_maps(text: str) -> Tensor:
    """Attention weights of the trained language model on a text of T characters, (layers, heads, T, T).

    Raises:
        UserError: the text is too short or longer than the model's context, or has an unknown character.
    """
    from zoo.hub.loading import load

    model: Any = load(LANGUAGE_MODEL)
    if not 2 <= len(text) <= min(60, model.context_length):
        raise UserError(f"text has {len(text)} characters; it must have 2 to {min(60, model.context_length)}")
    tokens = model.tokenizer.encode(text)
    with torch.no_grad(), record_attention(model.network) as maps:
        model(tokens.unsqueeze(0))
    return torch.stack([calls[0][0] for calls in maps.values()])


def targets(text: str, pattern: Pattern) -> Tensor:
    """Where a head of this pattern looks, bool (T, T): true in row t at the positions s before t that are

    - "previous": the previous character;
    - "last_space": the last space;
    - "same_letter": every earlier occurrence of the letter at t;
    - "successor": what followed each of these occurrences.
    """
    n = len(text)
    found = torch.zeros(n, n, dtype=torch.bool)
    for t in range(1, n):
        before = text[:t]
        same = [s for s in range(t) if text[s] == text[t] != " "]
        found[t, _places(before, pattern, same)] = True
    return found


def _places(before: str, pattern: Pattern, same: Sequence[int]) -> list[int]:
    t = len(before)
    if pattern == "previous":
        return [t - 1]
    if pattern == "last_space":
        return [before.rindex(" ")] if " " in before else []
    return list(same) if pattern == "same_letter" else [s + 1 for s in same if s + 1 < t]


def score(weights: Tensor, wanted: Tensor) -> Tensor:
    """Mean weight on the targets, over the positions that have any, of maps (..., T, T), (...); 0 if none has."""
    rows = wanted.any(1)
    return (weights * wanted).sum(-1)[..., rows].mean(-1) if rows.any() else weights.new_zeros(weights.shape[:-2])


def chance(wanted: Tensor) -> float:
    """`score` of equal weights on all positions up to each one's own."""
    equal = torch.ones(wanted.shape).tril()
    return score(equal / equal.sum(1, keepdim=True), wanted).item()


def best_head(scores: Tensor) -> tuple[int, int]:
    """Layer and head of the highest score, of scores (layers, heads)."""
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return layer, head


def reversal_maps(digits: str) -> tuple[Tensor, str]:
    """Cross-attention of the trained reversal model while it reverses digits, (layers, heads, T, S), and its answer.

    Rows are the T = S tokens of the answer and its end token, columns those of the source.
    """
    from zoo.hub.loading import load

    model: Any = load(REVERSAL_MODEL)
    length = len(digits) + 1
    source = encode([digits], length)
    target = model.greedy_decode(source)[:, :length]
    maps = model.attention(source, target)
    layers = [weights[0] for name, weights in maps.items() if name.endswith("cross_attention")]
    return torch.stack(layers), decode(target)[0]


def random_scores(d: int, keys: int, queries: int, scaled: bool, generator: torch.Generator) -> Tensor:
    """Scores q·k, or q·k / sqrt(d), of standard normal queries and keys, (queries, keys), float64."""
    q = torch.randn(queries, d, generator=generator, dtype=torch.double)
    k = torch.randn(keys, d, generator=generator, dtype=torch.double)
    scores = q @ k.T
    return scores / math.sqrt(d) if scaled else scores


def entropy(scores: Tensor) -> float:
    """Mean entropy of softmax(scores) over the last dimension, in nats."""
    log_p = scores.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean().item()


def entropy_law(variance: float, keys: int) -> float:
    """Entropy of the softmax of many normal scores: ln S - variance / 2, down to where a few of them have all weight.

    With E exp(z) = exp(variance / 2) and E z exp(z) = variance exp(variance / 2). It holds while variance < 2 ln S, and
    is 0 at that point.
    """
    return max(0.0, math.log(keys) - variance / 2)


def stack(pos_encoding: PosEncoding | None, width: int = 32, seed: int = 0) -> TransformerStack:
    """Untrained Transformer of two blocks, float64, in eval mode."""
    torch.manual_seed(seed)
    return TransformerStack(2, width, heads=4, pos_encoding=pos_encoding).double().eval()


@torch.no_grad()
def permutation_error(model: TransformerStack, length: int, causal: bool = False, seed: int = 0) -> float:
    """Relative change of the output, if the inputs are permuted and the outputs permuted back.

    Args:
        model: Transformer, float64.
        length: number of positions T.
        causal: attend to no later position.
        seed: random seed of inputs and permutation.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, length, model.width, generator=generator, dtype=torch.double)
    order = torch.randperm(length, generator=generator)
    y = model(x, causal=causal)
    return ((model(x[:, order], causal=causal) - y[:, order]).norm() / y.norm()).item()


@torch.no_grad()
def shift_error(model: TransformerStack, length: int, shift: int, seed: int = 0) -> float:
    """Relative change of the last `length` outputs, if the same inputs stand `shift` positions later.

    The positions before them are masked.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, length, model.width, generator=generator, dtype=torch.double)
    filler = torch.zeros(1, shift, model.width, dtype=torch.double)
    mask = torch.cat([torch.zeros(shift, dtype=torch.bool), torch.ones(length, dtype=torch.bool)])
    y = model(x)
    moved = model(torch.cat([filler, x], dim=1), mask=mask[None])[:, shift:]
    return ((moved - y).norm() / y.norm()).item()


def distance_gradients(cell: Cell, length: int, width: int = 64, samples: int = 16, seed: int = 0) -> Tensor:
    """Gradient norm of the last output with respect to the input k positions before it, k = 0, 1, ..., (length,).

    Args:
        cell: torch's RNN or LSTM with its default initialization, or one causal Transformer block.
        length: number of positions.
        width: number of channels.
        samples: sequences that are averaged over.
        seed: random seed.
    """
    torch.manual_seed(seed)
    x = torch.randn(samples, length, width, dtype=torch.double, requires_grad=True)
    if cell == "attention":
        out = TransformerStack(1, width, heads=4).double()(x, causal=True)
    else:
        out = getattr(nn, cell)(width, width, batch_first=True).double()(x)[0]
    direction = torch.randn(width, dtype=torch.double)
    (gradient,) = torch.autograd.grad((out[:, -1] @ direction).sum(), x)
    return gradient.norm(dim=2).mean(0).flip(0)


def anti_diagonal_score(weights: Tensor) -> Tensor:
    """Mean weight on the digit that a reversal copies, of maps (..., T, T) whose last token is the end token, (...)."""
    return weights[..., :-1, :-1].flip(-1).diagonal(dim1=-2, dim2=-1).mean(-1)


def draw(
    text: str = "To be, or not to be: that is",
    pattern: Pattern = "last_space",
    digits: str = "31415926",
    keys: int = 512,
    length: int = 64,
    shift: int = 10,
    seed: int = 0,
) -> RGBImage:
    """Draws the figure of the section.

    Args:
        text: text that the language model reads, of at most 60 characters.
        pattern: what the head of the second panel looks at: the one with the most weight on it is drawn.
        digits: digits to reverse, at most 10.
        keys: number of keys in the panel on the entropy.
        length: number of positions in the panels on order and on distance.
        shift: positions by which all inputs are moved in the panel on order.
        seed: random seed.
    """
    if not (1 <= len(digits) <= 10 and digits.isascii() and digits.isdigit()):
        raise UserError(f"digits is {digits!r}; it must be 1 to 10 digits from 0 to 9")
    check_at_least(2, keys=keys, length=length)
    check_at_least(1, shift=shift)
    check_at_most(10_000, keys=keys)
    check_at_most(1000, length=length, shift=shift)
    check_seed(seed=seed)
    figure, axes = new_figure(6, size=3.4, columns=2)
    _plot_language(axes[0], axes[1], text, pattern)
    _plot_reversal(axes[2], digits)
    _plot_entropy(axes[3], keys, seed)
    _plot_order(axes[4], length, shift, seed)
    _plot_distance(axes[5], length, seed)
    return render_figure(figure)


def _plot_map(ax: Any, weights: Tensor, rows: Sequence[str], columns: Sequence[str], most: float = 1.0) -> None:
    ax.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=most, aspect="auto")
    size = min(7.0, 200 / len(columns))
    for axis, labels in ((ax.xaxis, columns), (ax.yaxis, rows)):
        axis.set_ticks(range(len(labels)), ["_" if label == " " else label for label in labels], fontsize=size)
    ax.tick_params(length=0, pad=1)


def _plot_language(left: Any, right: Any, text: str, pattern: Pattern) -> None:
    """The head that looks most at the previous character, and the one that looks most at what the pattern says."""
    maps = language_maps(text)
    patterns: tuple[Pattern, Pattern] = ("previous", pattern)
    for ax, one in zip((left, right), patterns, strict=True):
        wanted = targets(text, one)
        scores = score(maps, wanted)
        layer, head = best_head(scores)
        _plot_map(ax, maps[layer, head], list(text), list(text), most=0.6)
        name = f"layer {layer + 1}, head {head + 1}: {scores[layer, head]:.2f} on {one.replace('_', ' ')}"
        ax.set_title(f"{name}, by chance {chance(wanted):.2f}", fontsize="medium")
        ax.set(ylabel="query", xlabel="key")


def _plot_reversal(ax: Any, digits: str) -> None:
    maps, answer = reversal_maps(digits)
    scores = anti_diagonal_score(maps)
    layer, head = best_head(scores)
    _plot_map(ax, maps[layer, head], [*answer, "end"], [*digits, "end"])
    ax.set_title(
        f"reversal, layer {layer + 1}, head {head + 1}: {scores[layer, head]:.2f} on its digit", fontsize="medium"
    )
    ax.set(ylabel="query: answer", xlabel="key: source")


def _plot_entropy(ax: Any, keys: int, seed: int, queries: int = 200) -> None:
    generator = torch.Generator().manual_seed(seed)
    series = ((False, "q·k", PALETTE[1], "s"), (True, "q·k / √d", PALETTE[0], "o"))
    fine = torch.logspace(0, math.log10(DIMENSIONS[-1]), 200).tolist()
    for scaled, name, color, marker in series:
        found = [entropy(random_scores(d, keys, queries, scaled, generator)) for d in DIMENSIONS]
        ax.plot(DIMENSIONS, found, marker, color=color, markersize=4, label=f"softmax({name})")
        law = [entropy_law(1 if scaled else d, keys) for d in fine]
        ax.plot(fine, law, color=color, linewidth=1, label=f"ln {keys} - {'1' if scaled else 'd'} / 2")
    ax.set_title("scores have the variance d, or 1", fontsize="medium")
    ax.set_xscale("log", base=2)
    ax.set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS])
    ax.set(xlabel="channels d of a head", ylabel="entropy of the weights, nats", ylim=(0, None))
    ax.legend(fontsize="x-small", loc="center right")


def _plot_order(ax: Any, length: int, shift: int, seed: int) -> None:
    encodings: tuple[tuple[str, PosEncoding | None], ...] = (
        ("none", None),
        ("sinusoidal", "sinusoidal"),
        ("rotary", "rotary"),
    )
    models = [stack(encoding, seed=seed) for _, encoding in encodings]
    changes = {
        "inputs permuted": [permutation_error(model, length, seed=seed) for model in models],
        "permuted, causal mask": [permutation_error(model, length, causal=True, seed=seed) for model in models],
        f"all {shift} positions later": [shift_error(model, length, shift, seed) for model in models],
    }
    floor = 1e-17
    for index, ((name, errors), color) in enumerate(zip(changes.items(), PALETTE, strict=False)):
        places = [place + 0.27 * (index - 1) for place in range(len(models))]
        ax.bar(places, [max(error, floor) for error in errors], width=0.25, color=color, label=name)
    ax.set_xticks(range(len(models)), [name for name, _ in encodings])
    ax.set_title("does a Transformer see the order?", fontsize="medium")
    ax.set(yscale="log", xlabel="positional encoding", ylabel="relative change of the output", ylim=(floor, 1e4))
    ax.legend(fontsize="x-small", loc="upper left")


def _plot_distance(ax: Any, length: int, seed: int) -> None:
    cells: tuple[Cell, ...] = ("RNN", "LSTM", "attention")
    for cell, color in zip(cells, (PALETTE[1], PALETTE[4], PALETTE[0]), strict=True):
        ax.plot(distance_gradients(cell, length, seed=seed), color=color, label=cell)
    ax.set_title("before training: one layer of each", fontsize="medium")
    ax.set(yscale="log", xlabel="distance of the input, positions", ylabel="gradient norm")
    ax.legend(fontsize="x-small", loc="lower left")
