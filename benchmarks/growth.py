"""Cost and memory of training against batch and image size, width, images, processes and length of a run. Usage:

    python -m benchmarks.growth --out growth.png
    python -m benchmarks.growth --axes image_size length

Each point is a process of its own, in which a recipe's model trains for a few steps on random images with one thread
and the memory allocator of the command line: the median CPU seconds of a step, and the memory that it added at its
peak. `exponent` is the slope of the logarithms between the largest two values of an axis: 1 for what grows in
proportion. The axis `length` runs no model: it writes as many rows to metrics.csv, draws curves.png once, and keeps as
many measurements of `GradientFlow` of 20 layers, as a run of that many thousand steps does with the recipes' settings.
The axis `processes` trains by DDP over gloo, with the same batch on each process, and its seconds are those of the
clock, waiting included: it needs as many free cores.
"""

from __future__ import annotations

import io
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.common import in_own_process, read_recipe
from benchmarks.gpu_day.recipes import as_factory, changed
from benchmarks.output import check_new, markdown_table, new_parser, report
from zoo.callbacks import GradientFlow
from zoo.callbacks.gradient_probe import Measurement, Row
from zoo.cli.allocator import keep_freed_memory
from zoo.datamodules import InMemoryDataModule
from zoo.plotting.curves import plot_curves
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import RGBImage, save_png
from zoo.registry import find_class
from zoo.report.metrics import read_metrics
from zoo.testing.ranks import on_ranks, rank_options
from zoo.testing.runs import linked
from zoo.tracking.loggers import RunCSVLogger

AXES: dict[str, Sequence[int]] = {
    "batch_size": (8, 32, 128, 512),
    "image_size": (8, 16, 32, 64, 128),
    "width": (16, 32, 64, 128),
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "processes": (1, 2),
    "length": (1, 4, 16, 64),
}
UNITS = {
    "batch_size": "images in a batch",
    "image_size": "pixels of a side",
    "width": "channels of the first level",
    "images": "training images",
    "processes": "processes",
    "length": "thousand steps",
}
POWERS = {"batch_size": 1, "image_size": 2}  # of what grows in proportion to the values of an axis, to the pixels
RECIPES = ("gan.yaml", "diffusion_fashion.yaml", "resnet.yaml", "vit.yaml")
SIZES = {"vit.yaml": {"patch_size": 4, "layers": 6}}  # patches that divide images of every size
WARMUP, TIMED = 2, 3  # steps
SMALL_BATCH = 16  # where the batch is not what grows
PROCESS_BATCH = 64  # batch of each process, where their number grows
LAYERS = 20  # of the network whose gradients are measured in the axis `length`


class RandomImages(InMemoryDataModule):
    """Random gray images of ten classes.

    Args:
        side: height and width in pixels.
        count: number of training images, those for validation included.
        **options: options of `InMemoryDataModule`.
    """

    num_classes, class_names = 10, tuple("0123456789")

    def __init__(self, side: int, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.input_shape, self.count = (1, side, side), count

    def load_split(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        n = self.count if train else 10
        return torch.randint(256, (n, *self.input_shape), dtype=torch.uint8), torch.randint(10, (n,))


class Timer(Callback):
    """Seconds of each step, without those in between.

    Args:
        clock: what counts them.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = self.clock()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(self.clock() - self._start)


def with_width(recipe: str, width: int) -> dict[str, Any]:
    """Arguments of a recipe's model that set the channels of the first level."""
    networks = {name: {"class_path": f"Conv{name.title()}", "init_args": {"width": width}} for name in
                ("generator", "discriminator")}  # fmt: skip
    return {
        "gan.yaml": networks,
        "diffusion_fashion.yaml": changed("diffusion_fashion.yaml", "network", widths=[width, 2 * width]),
        "resnet.yaml": {"widths": [width, 2 * width, 4 * width]},
        "vit.yaml": {"width": width, "heads": max(1, width // 32)},
    }[recipe]


def train(recipe: str, axis: str, value: int, timed: int) -> dict[str, float]:
    """Trains a recipe's model for a few steps; returns seconds of a step and of the set-up, and memory in MB."""
    if axis == "processes":
        ranks = on_ranks(partial(train_process, recipe, axis, value, timed), value)
        return {name: statistics.mean(rank[name] for rank in ranks) for name in ranks[0]}
    return train_process(recipe, axis, value, TIMED)


def train_process(recipe: str, axis: str, value: int, timed: int) -> dict[str, float]:
    """The training of one process: all of it, or a rank of several that train together."""
    together = axis == "processes"
    side = value if axis == "image_size" else 8 if axis == "images" else 28
    batch = value if axis == "batch_size" else PROCESS_BATCH if together else SMALL_BATCH
    count = value if axis == "images" else max(1000, 8 * batch * (value if together else 1))
    spec = read_recipe(recipe)["model"]
    arguments = {**spec["init_args"], **SIZES.get(recipe, {}), **(with_width(recipe, value) if axis == "width" else {})}
    before = _peak()
    clock = time.perf_counter if together else time.process_time
    start = clock()
    torch.manual_seed(0)
    data = RandomImages(side, count, val_size=10, batch_size=batch)
    make = partial(find_class(spec["class_path"], "models"), **{k: as_factory(v) for k, v in arguments.items()})
    model = make(**linked(make, data, {}))
    timer = Timer(clock)
    shown = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    hidden: dict[str, Any] = dict.fromkeys(shown, False)
    hidden |= {"limit_val_batches": 0, "log_every_n_steps": 1000}
    hidden |= rank_options(value) if together else {}
    trainer = Trainer(accelerator="cpu", max_steps=WARMUP + timed, callbacks=[timer], **hidden)
    trainer.fit(model, datamodule=data)
    total = clock() - start
    return {
        "seconds": statistics.median(timer.seconds[WARMUP:]),
        "set_up_seconds": total - sum(timer.seconds),
        "megabytes": _peak() - before,
    }


def log(value: int) -> dict[str, float]:
    """Files of a run of `value` thousand steps; returns CPU seconds of a thousand steps, of the curves, and MB kept."""
    with tempfile.TemporaryDirectory() as folder:
        logger, flow = RunCSVLogger(folder, "", ""), GradientFlow()
        names = tuple(map(str, range(LAYERS)))
        before, start = _peak(), time.process_time()
        for step in range(0, 1000 * value, 25):
            logger.log_metrics({name: math.sin(step) for name in ("loss", "acc", "lr", "grad_norm")}, step)
            if step % 50 == 0:
                rows = [Row(1.0, 1.0, 0.001)] * LAYERS
                flow._record(_NoLoggers(), Measurement(step, "network", names, rows, math.nan))
        logger.save()
        written = time.process_time() - start
        start = time.process_time()
        plot_curves(read_metrics(Path(logger.log_dir) / "metrics.csv"))
        drawn = time.process_time() - start
        buffer = io.BytesIO()
        torch.save(flow.state_dict(), buffer)
        return {
            "seconds": written / value,
            "curves_seconds": drawn,
            "checkpoint_megabytes": buffer.tell() / 1e6,
            "megabytes": _peak() - before,
        }


class _NoLoggers:
    """What `GradientFlow` needs of a Trainer when it records a measurement."""

    loggers: Sequence[Any] = ()


def _peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(recipe: str, axis: str, value: int, timed: int) -> dict[str, float]:
    """Measures a point, with the memory allocator of the command line."""
    keep_freed_memory()
    return log(value) if axis == "length" else train(recipe, axis, value, timed)


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Slope of the logarithms between the last two points."""
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(max(y1, 1e-9) / max(y0, 1e-9)) / math.log(x1 / x0)


def draw(curves: dict[str, dict[str, list[tuple[int, dict[str, float]]]]]) -> RGBImage:
    """CPU time above memory, a column for each axis, with a dotted line of proportional growth where one is due."""
    figure, axes = new_figure(2 * len(curves), columns=len(curves))
    for column, (axis, recipes) in enumerate(curves.items()):
        for row, (key, scale, unit) in enumerate((("seconds", 1000, "CPU ms a step"), ("megabytes", 1, "MB added"))):
            ax = axes[row * len(curves) + column]
            for marker, (recipe, points) in zip("os^D", recipes.items(), strict=False):
                values = [scale * max(found[key], 1e-3 / scale) for _, found in points]
                ax.plot([value for value, _ in points], values, marker=marker, label=recipe.removesuffix(".yaml"))
            given = [value for value, _ in next(iter(recipes.values()))]
            if axis in POWERS:
                top = max(scale * found[key] for points in recipes.values() for _, found in points)
                line = [top * (value / given[-1]) ** POWERS[axis] for value in given]
                ax.plot(given, line, ":", color="0.4", label="in proportion" + " to pixels" * (axis == "image_size"))
            ax.set(xscale="log", yscale="log", xlabel=UNITS[axis], ylabel=unit)
            ax.set_xticks(given, [f"{value:,}" for value in given], minor=False)
            ax.set_xticks([], minor=True)
            if key == "seconds" and axis in ("length", "processes"):
                ax.set_ylabel("CPU ms a thousand steps" if axis == "length" else "ms a step")
            if axis in ("length", "processes") or (axis, key) == ("images", "seconds"):
                low, high = ax.get_ylim()
                ax.set_ylim(low / 5, high * 5)  # else noise would look like growth
            ax.legend(fontsize="small")
    return render_figure(figure)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="what grows")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="models")
    parser.add_argument("--most", type=int, default=2**20, help="largest value of an axis")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed on the axis processes")
    parser.add_argument("--out", type=Path, help="figure to write (default: none)")
    options = parser.parse_args(args)
    if options.out is not None:
        check_new(parser, options.out)
    curves: dict[str, dict[str, list[tuple[int, dict[str, float]]]]] = {}
    for axis in options.axes:
        for recipe in ["logging"] if axis == "length" else options.recipes:
            for value in [value for value in AXES[axis] if value <= options.most]:
                found = in_own_process(f"{recipe} with {axis} {value}", measure, recipe, axis, value, options.steps)
                report(f"{recipe}, {axis} {value}", None, **found)
                curves.setdefault(axis, {}).setdefault(recipe, []).append((value, found))
    rows = []
    for axis, recipes in curves.items():
        for recipe, points in recipes.items():
            slopes = [exponent([(value, found[key]) for value, found in points]) for key in ("seconds", "megabytes")]
            last = points[-1][1]
            cells = [
                f"{1000 * last['seconds']:.4g}",
                f"{slopes[0]:.2f}",
                f"{last['megabytes']:.0f}",
                f"{slopes[1]:.2f}",
            ]
            rows.append([axis, recipe, *cells])
    print(markdown_table(["axis", "recipe", "ms a step at most", "exponent", "MB at most", "exponent"], rows))
    if options.out is not None:
        save_png(options.out, draw(curves))


if __name__ == "__main__":
    main()
