"""Quality of the GAN recipes over several seeds, compared with a textbook baseline that sees as many images.

The baseline is the GAN of PyTorch Lightning's own example (`basic_gan.py`): fully connected networks, batch norm in
the generator (128-256-512-1024), Adam 2e-4 with betas (0.5, 0.999), the non-saturating loss, no penalty, no moving
average of the weights. It runs in the same training loop on the same data and is measured by the same extractor on the
test split, which nothing else uses. Usage:

    python benchmarks/gan_quality.py digits --seeds 3
    python benchmarks/gan_quality.py fashion_mnist --root data --seeds 3
    python benchmarks/gan_quality.py points --seeds 3
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from common import markdown_table, mean_std, new_parser, read_recipe
from zoo import GAN
from zoo.callbacks.mode_coverage import mode_coverage
from zoo.datamodules import Digits, FashionMNIST, InMemoryDataModule, Points


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


def textbook_adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam as in Lightning's example."""
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


def textbook_gan(input_shape: tuple[int, ...]) -> GAN:
    """Networks and settings of the baseline in the zoo's training loop."""
    return GAN(
        input_shape,
        latent_dim=100,
        generator=TextbookGenerator,
        discriminator=TextbookDiscriminator,
        loss="non_saturating",
        penalty="none",
        ema_half_life=0,
        optimizer_g=textbook_adam,
        optimizer_d=textbook_adam,
        lr_scheduler_g=None,
        lr_scheduler_d=None,
    )


def from_recipe(name: str, data: InMemoryDataModule) -> GAN:
    """The model of a recipe."""
    arguments = read_recipe(name)["model"]["init_args"]
    for key in ("optimizer_g", "optimizer_d", "lr_scheduler_g", "lr_scheduler_d"):
        module, _, class_name = arguments[key]["class_path"].rpartition(".")
        arguments[key] = partial(getattr(import_module(module), class_name), **arguments[key]["init_args"])
    return GAN(input_shape=data.input_shape, num_classes=data.num_classes, **arguments)


def train(model: GAN, data: InMemoryDataModule, steps: int) -> float:
    """Trains without validation; returns the CPU seconds, which other load affects less than elapsed time."""
    trainer = _trainer(max_steps=steps, limit_val_batches=0)
    start = time.process_time()
    trainer.fit(model, datamodule=data)
    return time.process_time() - start


def _trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def measure_images(data: InMemoryDataModule, seeds: int, models: Sequence[str], steps: int) -> str:
    """Fréchet distances of the recipe and of the baseline after as many steps, as a table."""
    distances: dict[str, list[float]] = {name: [] for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for seed in range(seeds):
        for name in models:
            seed_everything(seed, verbose=False)
            model = textbook_gan(data.input_shape) if name == "textbook" else from_recipe("gan.yaml", data)
            seconds[name].append(train(model, data, steps))
            (metrics,) = _trainer().test(model, datamodule=data, verbose=False)
            distances[name].append(metrics["test/fd"])
            row = {"model": name, "seed": seed, "images": steps * data.batch_size}
            print(json.dumps({**row, "cpu_seconds": round(seconds[name][-1], 1), **metrics}), flush=True)
    rows = [[name, mean_std(distances[name], 2), mean_std(seconds[name], 0)] for name in models]
    return markdown_table(["model", "FD", "CPU seconds"], rows)


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
            row = {"data": distribution, "seed": seed, "modes": modes, "of": data.num_classes}
            row |= {"within_3_sigma": within_3, "within_1_sigma": within_1, "cpu_seconds": round(seconds, 1)}
            print(json.dumps(row), flush=True)
            shares = [f"{100 * share:.1f}" for share in (within_3, within_1)]
            rows.append([distribution, str(seed), f"{modes} of {data.num_classes}", *shares, f"{seconds:.0f}"])
    return markdown_table(["data", "seed", "modes", "within 3 sigma %", "within 1 sigma %", "CPU seconds"], rows)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("data", choices=["digits", "fashion_mnist", "points"], help="data to train on")
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds")
    parser.add_argument("--max_steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["recipe", "textbook"],
        choices=["recipe", "textbook"],
        help="models to train on images",
    )
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.data == "points":
        print(measure_points(options.seeds, options.max_steps))
        return
    if options.data == "digits":
        data: InMemoryDataModule = Digits(batch_size=64, repeats=20)
    else:
        data = FashionMNIST(root=options.root, batch_size=64, eval_batch_size=1000)
    steps = options.max_steps or read_recipe("gan.yaml")["trainer"]["max_steps"]
    print(measure_images(data, options.seeds, options.models, steps))


if __name__ == "__main__":
    main()
