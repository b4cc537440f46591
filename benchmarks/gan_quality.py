"""Quality of the GAN recipes over several seeds, beside a textbook baseline that sees as many images.

The baseline is the GAN of PyTorch Lightning's own example (`basic_gan.py`): fully connected networks, batch norm in
the generator (128-256-512-1024), Adam 2e-4 with betas (0.5, 0.999), the non-saturating loss, no penalty, no average of
the weights. It runs in the same training loop, on the same data, and is measured by the same extractor, on the test
split, which nothing else touches. Run it as

    python benchmarks/gan_quality.py digits --seeds 3
    python benchmarks/gan_quality.py fashion_mnist --root data --seeds 3
    python benchmarks/gan_quality.py points --seeds 3
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn

from zoo import GAN
from zoo.callbacks.mode_coverage import mode_coverage
from zoo.datamodules import Digits, FashionMNIST, Points

CONFIGS = Path(__file__).parent.parent / "zoo" / "configs"


class TextbookGenerator(nn.Module):
    """z (N, latent_dim) to images through 128-256-512-1024 units with batch norm, all but the first."""

    def __init__(self, output_shape: tuple[int, ...], latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(latent_dim, 128), nn.LeakyReLU(0.2)]
        for before, after in ((128, 256), (256, 512), (512, 1024)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]
        size = math.prod(output_shape)
        self.layers = nn.Sequential(*layers, nn.Linear(1024, size), nn.Tanh(), nn.Unflatten(1, output_shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(z)


class TextbookDiscriminator(nn.Module):
    """Images to logits (N,) through 512-256 units."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
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
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


class TextbookGAN(GAN):
    """The baseline's networks and settings in the zoo's training loop."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__(
            input_shape,
            latent_dim=100,
            loss="non_saturating",
            penalty="none",
            ema_half_life=0,
            optimizer_g=textbook_adam,
            optimizer_d=textbook_adam,
            lr_scheduler_g=None,
            lr_scheduler_d=None,
        )

    def _build_networks(self, *_: Any) -> tuple[nn.Module, nn.Module]:
        return TextbookGenerator(self.input_shape, self.latent_dim), TextbookDiscriminator(self.input_shape)


def from_recipe(name: str, data: LightningDataModule) -> tuple[GAN, int]:
    """The model of a recipe, and the number of steps that it trains for."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    arguments = dict(config["model"]["init_args"])
    for key in ("optimizer_g", "optimizer_d", "lr_scheduler_g", "lr_scheduler_d"):
        init = arguments.pop(key)
        module, _, class_name = init["class_path"].rpartition(".")
        target = getattr(__import__(module, fromlist=[class_name]), class_name)
        arguments[key] = lambda first, target=target, init=init: target(first, **init["init_args"])
    return GAN(input_shape=data.input_shape, num_classes=data.num_classes, **arguments), config["trainer"]["max_steps"]


def train(model: GAN, data: LightningDataModule, steps: int) -> float:
    """Trains without validation; returns the CPU seconds that it took, which a busy machine changes less."""
    trainer = _trainer(max_steps=steps, limit_val_batches=0)
    start = time.process_time()
    trainer.fit(model, datamodule=data)
    return time.process_time() - start


def _trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def measure_images(data: LightningDataModule, seeds: int, models: tuple[str, ...]) -> None:
    results: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name in models:
            seed_everything(seed, verbose=False)
            model, steps = from_recipe("gan.yaml", data)
            if name == "textbook":
                seed_everything(seed, verbose=False)
                model = TextbookGAN(data.input_shape)
            seconds = train(model, data, steps)
            (metrics,) = _trainer().test(model, datamodule=data, verbose=False)
            result = {"model": name, "seed": seed, "images": steps * data.batch_size, "cpu_seconds": round(seconds, 1)}
            print(json.dumps(result | metrics), flush=True)
            results.setdefault(name, []).append(metrics["test/fd"])
    for name, values in results.items():
        print(f"{name}: FD {statistics.mean(values):.2f} ± {statistics.stdev(values) if seeds > 1 else 0:.2f}")


def measure_points(seeds: int) -> None:
    config = yaml.safe_load((CONFIGS / "gan_points.yaml").read_text())["data"]["init_args"]
    for distribution in ("ring", "grid"):
        for seed in range(seeds):
            data = Points(**(config | {"distribution": distribution}))
            seed_everything(seed, verbose=False)
            model, steps = from_recipe("gan_points.yaml", data)
            seconds = train(model, data, steps)
            points = model.sample(2500, generator=torch.Generator().manual_seed(seed))
            modes, share = mode_coverage(points, data.centers, data.std)
            result = {
                "data": distribution,
                "seed": seed,
                "modes": modes,
                "of": data.num_classes,
                "within_3_sigma": share,
            }
            # A perfect generator has 39% within one sigma: more says that the modes are too narrow.
            _, result["within_1_sigma"] = mode_coverage(points, data.centers, data.std, radius=1.0)
            print(json.dumps(result | {"cpu_seconds": round(seconds, 1)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "fashion_mnist", "points"])
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=["recipe", "textbook"], choices=["recipe", "textbook"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    if arguments.data == "points":
        measure_points(arguments.seeds)
    elif arguments.data == "digits":
        measure_images(Digits(batch_size=64, repeats=20), arguments.seeds, tuple(arguments.models))
    else:
        data = FashionMNIST(root=arguments.root, batch_size=64, eval_batch_size=1000)
        measure_images(data, arguments.seeds, tuple(arguments.models))


if __name__ == "__main__":
    main()
