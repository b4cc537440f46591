"""Quality of the GAN recipes over several seeds, compared with two baselines that see as many images.

The recipes are `gan.yaml` for clothes and `gan_digits.yaml` for digits, each with classes and without.

The textbook baseline is the GAN of PyTorch Lightning's own example (`basic_gan.py`): fully connected networks, batch
norm in the generator (128-256-512-1024). The other one is a DCGAN (Radford et al. 2016, arXiv 1511.06434) whose
networks have as many parameters as the recipe's: strided convolutions with batch norm. Both have Adam with betas
(0.5, 0.999) and a constant learning rate, the non-saturating loss and no penalty. They run in the same training loop on
the same data and are measured by the same extractor.

The baselines are measured as they were published, with a learning rate of 2e-4 and without a moving average of the
generator, and tuned: with the learning rate of `--lr`, with or without the recipe's moving average, that has the lowest
distance to the validation split with the first seed. The averaged and the raw generator come from the same training.
The test split is measured for the rows of the table only and chooses nothing. Usage:

    python -m benchmarks.gan_quality digits --seeds 3
    python -m benchmarks.gan_quality clothes --seeds 3
    python -m benchmarks.gan_quality fashion_mnist --root data --seeds 3
    python -m benchmarks.gan_quality points --seeds 3
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from benchmarks.common import read_recipe
from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo import GAN
from zoo.callbacks.mode_coverage import mode_coverage
from zoo.datamodules import Digits, FashionMNIST, FashionMNISTSubset, InMemoryDataModule, Points


class TextbookGenerator(nn.Module):
    """z (N, latent_dim) to images, by layers of 128, 256, 512 and 1024 units with batch norm on all but the first."""

    def __init__(self, output_shape: tuple[int, ...], latent_dim: int, num_classes: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(latent_dim, 128), nn.LeakyReLU(0.2)]
        for before, after in ((128, 256), (256, 512), (512, 1024)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]
        size = math.prod(output_shape)
        self.layers = nn.Sequential(*layers, nn.Linear(1024, size), nn.Tanh(), nn.Unflatten(1, output_shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(z)


class TextbookDiscriminator(nn.Module):
    """Images to logits (N,), by layers of 512 and 256 units."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), 512), nn.LeakyReLU(0.2),
            nn.Linear(512, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, 1), nn.Flatten(0),
        )  # fmt: skip

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(x)


class DCGANGenerator(nn.Module):
    """z (N, latent_dim) to images: a linear map to a quarter of the sides, then two transposed convolutions.

    Batch norm and ReLU after all layers but the last, which ends in tanh (Radford et al. 2016, section 3).

    Args:
        output_shape: shape (C, H, W) of an image; both sides are divisible by 4.
        latent_dim: length of z.
        num_classes: without meaning; the baseline is unconditional.
        width: channels at half the resolution, doubled at a quarter of it.
    """

    def __init__(self, output_shape: tuple[int, ...], latent_dim: int, num_classes: int = 0, width: int = 32) -> None:
        super().__init__()
        channels, height, columns = output_shape
        coarse = (2 * width, height // 4, columns // 4)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, math.prod(coarse), bias=False), nn.Unflatten(1, coarse),
            nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.apply(init_dcgan)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(z)


class DCGANDiscriminator(nn.Module):
    """Images to logits (N,): two strided convolutions, with batch norm in the second one, and a linear map.

    Args:
        input_shape: shape (C, H, W) of an image; both sides are divisible by 4.
        num_classes: without meaning; the baseline is unconditional.
        width: channels at half the resolution, doubled at a quarter of it.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int = 0, width: int = 32) -> None:
        super().__init__()
        channels, height, columns = input_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(2 * width * (height // 4) * (columns // 4), 1), nn.Flatten(0),
        )  # fmt: skip
        self.apply(init_dcgan)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(x)


def init_dcgan(layer: nn.Module) -> None:
    """Weights from N(0, 0.02^2), those of batch norm from N(1, 0.02^2) (Radford et al. 2016, section 4)."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def width_for(build: Callable[[int], nn.Module], parameters: int) -> int:
    """Width at which a network has the nearest number of parameters."""
    return min(range(1, 129), key=lambda width: abs(count(build(width)) - parameters))


def textbook_networks(data: InMemoryDataModule) -> dict[str, Any]:
    """Networks of Lightning's example, as arguments of `GAN`."""
    return {"generator": TextbookGenerator, "discriminator": TextbookDiscriminator}


def dcgan_networks(data: InMemoryDataModule) -> dict[str, Any]:
    """Networks of a DCGAN, as arguments of `GAN`, as large as the recipe's."""
    shape, recipe = data.input_shape, from_recipe(recipe_of(data), data, conditional=False)
    generator = width_for(lambda width: DCGANGenerator(shape, LATENT_DIM, width=width), count(recipe.generator))
    discriminator = width_for(lambda width: DCGANDiscriminator(shape, width=width), count(recipe.discriminator))
    return {
        "generator": partial(DCGANGenerator, width=generator),
        "discriminator": partial(DCGANDiscriminator, width=discriminator),
    }


OURS = ("by_class", "without_classes")  # the recipe
BASELINES = {"textbook": textbook_networks, "dcgan": dcgan_networks}
LATENT_DIM = 100  # of both baselines
PUBLISHED_LR = 2e-4  # of both baselines


def baseline(name: str, data: InMemoryDataModule, lr: float) -> GAN:
    """A baseline in the zoo's training loop, with a moving average of the generator beside it."""
    adam = partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.999), fused=True)
    return GAN(
        data.input_shape,
        latent_dim=LATENT_DIM,
        loss="non_saturating",
        penalty="none",
        ema_half_life=read_recipe(recipe_of(data))["model"]["init_args"]["ema_half_life"],
        optimizer_g=adam,
        optimizer_d=adam,
        lr_scheduler_g=None,
        lr_scheduler_d=None,
        **BASELINES[name](data),
    )


def recipe_of(data: InMemoryDataModule) -> str:
    """The recipe for a kind of images."""
    return "gan_digits.yaml" if isinstance(data, Digits) else "gan.yaml"


def from_recipe(name: str, data: InMemoryDataModule, **options: Any) -> GAN:
    """The model of a recipe, some of whose options may be others."""
    arguments = read_recipe(name)["model"]["init_args"] | options
    for key in ("optimizer_g", "optimizer_d", "lr_scheduler_g", "lr_scheduler_d"):
        module, _, class_name = arguments[key]["class_path"].rpartition(".")
        arguments[key] = partial(getattr(import_module(module), class_name), **arguments[key]["init_args"])
    return GAN(input_shape=data.input_shape, num_classes=data.num_classes, **arguments)


def train(model: GAN, data: InMemoryDataModule, steps: int, precision: str = "32-true") -> float:
    """Trains without validation; returns the CPU seconds, which other load affects less than elapsed time."""
    trainer = _trainer(max_steps=steps, limit_val_batches=0, precision=precision)
    start = time.process_time()
    trainer.fit(model, datamodule=data)
    return time.process_time() - start


def _trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


@dataclass(frozen=True)
class Row:
    """A row of the table: a model with its learning rate, None for the recipe's, and whether samples are averaged."""

    model: str
    lr: float | None
    average: bool

    def __str__(self) -> str:
        lr = "" if self.lr is None else f", lr {self.lr:g}"
        return f"{self.model}{lr}, {'average' if self.average else 'no average'}"


class Runs:
    """Trained models by name, learning rate and seed; each is trained once.

    Args:
        data: images.
        steps: training steps.
        precision: precision of training; samples are measured in float32.
    """

    def __init__(self, data: InMemoryDataModule, steps: int, precision: str = "32-true") -> None:
        self.data = data
        self.steps = steps
        self.precision = precision
        self.seconds: dict[tuple[str, float | None, int], float] = {}
        self._models: dict[tuple[str, float | None, int], GAN] = {}

    def distance(self, row: Row, seed: int, split: str) -> float:
        """Fréchet distance of a row's samples to the "val" or "test" split, printed as a line of JSON."""
        key = (row.model, row.lr, seed)
        if key not in self._models:
            seed_everything(seed, verbose=False)
            if row.lr is None:
                model = from_recipe(recipe_of(self.data), self.data, conditional=row.model == "by_class")
            else:
                model = baseline(row.model, self.data, row.lr)
            self.seconds[key] = train(model, self.data, self.steps, self.precision)
            self._models[key] = model
        model = self._models[key]
        average = model.ema
        model.ema = average if row.average else None
        measure = _trainer().validate if split == "val" else _trainer().test
        (metrics,) = measure(model, datamodule=self.data, verbose=False)
        model.ema = average
        found = {name.removeprefix(f"{split}/"): value for name, value in metrics.items()}
        found |= {"images": self.steps * self.data.batch_size, "cpu_seconds": round(self.seconds[key], 1)}
        report(f"{row}{', validation' if split == 'val' else ''}", seed, **found)
        return metrics[f"{split}/fd"]


def measure_images(runs: Runs, seeds: int, models: Sequence[str], rates: Sequence[float]) -> str:
    """Fréchet distances of the recipe and of the baselines after as many steps, as a table."""
    rows = []
    for name in models:
        if name in OURS:
            rows += [Row(name, None, True), Row(name, None, False)]
            continue
        candidates = [Row(name, lr, average) for lr in rates for average in (False, True)]
        tuned = min(candidates, key=lambda row: runs.distance(row, 0, "val"))
        rows += list(dict.fromkeys([Row(name, PUBLISHED_LR, False), tuned]))
    cells = []
    for row in rows:
        distances = [runs.distance(row, seed, "test") for seed in range(seeds)]
        seconds = [runs.seconds[row.model, row.lr, seed] for seed in range(seeds)]
        cells.append([str(row), mean_std(distances, 2), mean_std(seconds, 0)])
    return markdown_table(["model", "FD", "CPU seconds"], cells)


def measure_points(seeds: int, max_steps: int | None) -> str:
    """Mode coverage of the recipe for points on a ring and on a grid, as a table."""
    recipe = read_recipe("gan_points.yaml")
    rows = []
    for distribution in ("ring", "grid"):
        for seed in range(seeds):
            data = Points(**(recipe["data"]["init_args"] | {"distribution": distribution}))
            seed_everything(seed, verbose=False)
            model = from_recipe("gan_points.yaml", data)
            seconds = train(model, data, max_steps or recipe["trainer"]["max_steps"])
            points = model.sample(2500, generator=torch.Generator().manual_seed(seed))
            modes, within_3 = mode_coverage(points, data.centers, data.std)
            # A perfect generator has 39% within one sigma; more means that the modes are too narrow.
            _, within_1 = mode_coverage(points, data.centers, data.std, radius=1.0)
            found = {"modes": modes, "of": data.num_classes, "within_3_sigma": within_3, "within_1_sigma": within_1}
            report(distribution, seed, **found, cpu_seconds=round(seconds, 1))
            shares = [f"{100 * share:.1f}" for share in (within_3, within_1)]
            rows.append([distribution, str(seed), f"{modes} of {data.num_classes}", *shares, f"{seconds:.0f}"])
    return markdown_table(["data", "seed", "modes", "within 3 sigma %", "within 1 sigma %", "CPU seconds"], rows)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("data", choices=["digits", "clothes", "fashion_mnist", "points"], help="data to train on")
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds")
    parser.add_argument("--precision", default="32-true", help="precision of training, such as bf16-mixed")
    parser.add_argument("--max_steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--models",
        nargs="+",
        default=[*OURS, *BASELINES],
        choices=[*OURS, *BASELINES],
        help="models to train on images",
    )
    parser.add_argument(
        "--lr",
        type=float,
        nargs="+",
        default=[2e-4, 5e-4, 1e-3, 2e-3],
        help="learning rates that the baselines are tuned over",
    )
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.data == "points":
        print(measure_points(options.seeds, options.max_steps))
        return
    kinds = {"digits": Digits, "clothes": FashionMNISTSubset, "fashion_mnist": partial(FashionMNIST, options.root)}
    recipe = read_recipe("gan_digits.yaml" if options.data == "digits" else "gan.yaml")
    data: InMemoryDataModule = kinds[options.data](**recipe["data"]["init_args"])
    steps = options.max_steps or recipe["trainer"]["max_steps"]
    print(measure_images(Runs(data, steps, options.precision), options.seeds, options.models, options.lr))


if __name__ == "__main__":
    main()
