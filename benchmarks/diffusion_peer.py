"""Our diffusion model compared with denoising-diffusion-pytorch at equal parameters, CPU seconds and features.

The peer (P. Wang, `pip install denoising-diffusion-pytorch`; version 2.3.4 was measured) is used as its README shows:
`Unet`, `GaussianDiffusion` with 1000 steps, batches of 32 images and Adam. Its width gives about as many parameters as
our recipe `diffusion_fashion.yaml` has. For each seed ours trains `--steps` steps, with classes and without, and the
peer for the CPU seconds that ours without classes took, on the same images, each without any validation, with the same
schedule of the learning rate (1% warm-up, then a cosine to zero), and is measured with its last weights.

Three sets of the peer's weights are measured: the raw ones, the average of its trainer (beta 0.995, every 10 steps),
and an average by its own `EMA` class whose half-life is 5% of the images seen so far, which is ours. Its learning rate
is the one of `--lr` whose best set of weights has the lowest Fréchet distance on validation images at the first seed;
then it is trained with the other seeds, and only the table at the end is measured on the test split. Usage:

    python -m benchmarks.diffusion_peer --root data --steps 2750 --seeds 3
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor

from benchmarks.common import frechet, run_recipe
from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo import Diffusion
from zoo.metrics import load_extractor
from zoo.metrics.features import FeatureExtractor
from zoo.plotting.images import save_png
from zoo.plotting.samples import render_samples

CHUNK = 100  # samples per call of a sampler
WARMUP = 0.01  # share of the training in which the learning rate rises
HALF_LIFE = 0.05  # of our average, as a share of the images seen so far

Sampler = Callable[[int, Tensor], Tensor]  # number of samples and their labels to images in [-1, 1]


def train_ours(options: argparse.Namespace, seed: int, conditional: bool, folder: str) -> tuple[Diffusion, Any, float]:
    """Trains the recipe; returns its model, its data and its CPU seconds."""
    extra = [f"--data.root={options.root}", f"--model.conditional={conditional}".lower(), "--trainer.callbacks=[]"]
    extra += [f"--trainer.max_steps={options.steps}", "--trainer.limit_val_batches=0", *options.extra]
    extra += [] if conditional else ["--model.guidance_scale=0"]
    trainer, seconds = run_recipe(["diffusion_fashion.yaml", "fashion_mnist.yaml"], folder, seed, *extra)
    model = trainer.lightning_module
    assert isinstance(model, Diffusion)
    return model.eval(), trainer.datamodule, seconds  # type: ignore[attr-defined]


def learning_rate(share: float) -> float:
    """Factor of the learning rate after a share of the training in [0, 1]."""
    return min(share / WARMUP, 1.0) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def train_peer(x: Tensor, options: argparse.Namespace, lr: float, seed: int, budget: float) -> dict[str, Any]:
    """Trains the peer on images (N, 1, 28, 28) in [0, 1] for `budget` CPU seconds.

    Returns:
        `GaussianDiffusion` of each set of weights.
    """
    torch.manual_seed(seed)
    network = Unet(dim=options.dim, dim_mults=tuple(options.dim_mults), channels=1, flash_attn=False)
    diffusion = GaussianDiffusion(network, image_size=28)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=lr, betas=(0.9, 0.99))
    of_its_trainer = EMA(diffusion, beta=0.995, update_every=10)
    # A decay of k / (k + gamma) after k updates is a half-life of ln 2 / gamma of these.
    like_ours = EMA(
        diffusion, beta=1.0 - 1e-9, update_after_step=0, update_every=1, inv_gamma=math.log(2) / HALF_LIFE, power=1.0
    )
    start, images, seconds, loss = time.process_time(), 0, 0.0, torch.tensor(0.0)
    while seconds < budget:
        optimizer.param_groups[0]["lr"] = lr * learning_rate(seconds / budget)
        batch = x[torch.randint(len(x), (options.batch_size,))]
        loss = diffusion(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        of_its_trainer.update()
        like_ours.update()
        images, seconds = images + len(batch), time.process_time() - start
    parameters = sum(p.numel() for p in network.parameters())
    found = {"parameters": parameters, "images": images, "loss": loss.item(), "cpu_seconds": round(seconds)}
    report(f"peer, lr {lr:g}", seed, **found)
    return {
        "raw weights": diffusion.eval(),
        "average of its trainer": of_its_trainer.ema_model.eval(),
        "average like ours": like_ours.ema_model.eval(),
    }


def peer_sampler(diffusion: GaussianDiffusion, evaluations: int) -> Sampler:
    """The peer's DDIM, or its default sampler for its 1000 evaluations."""

    def sample(n: int, labels: Tensor) -> Tensor:
        steps = diffusion.num_timesteps
        diffusion.sampling_timesteps = evaluations
        try:
            shape = (n, 1, 28, 28)
            images = diffusion.ddim_sample(shape) if evaluations < steps else diffusion.sample(batch_size=n)
        finally:
            diffusion.sampling_timesteps = steps
        return images * 2 - 1

    return sample


def our_sampler(model: Diffusion) -> Sampler:
    generator = torch.Generator().manual_seed(0)
    return lambda n, labels: model.sample(n, labels=labels if model.conditional else None, generator=generator)


class Evaluator:
    """Measures samplers against a split's first `n` images, with their labels."""

    def __init__(self, extractor: FeatureExtractor, split: tuple[Tensor, Tensor], n: int) -> None:
        self.extractor, self.x, self.labels = extractor, split[0][:n], split[1][:n]

    def distance(self, sample: Sampler) -> tuple[float, Tensor, float]:
        """Fréchet distance of the samples, the samples, and the CPU seconds that they took."""
        torch.manual_seed(0)
        start = time.process_time()
        fake = torch.cat([sample(len(labels), labels) for labels in self.labels.split(CHUNK)])
        seconds = time.process_time() - start
        return frechet(self.extractor, self.x, fake), fake, seconds


def choose_lr(trained: dict[float, dict[str, Any]], validation: Evaluator, evaluations: int) -> float:
    """The learning rate whose best set of weights has the lowest Fréchet distance on validation images."""
    best: dict[float, float] = {}
    for lr, models in trained.items():
        found = {k: validation.distance(peer_sampler(model, evaluations))[0] for k, model in models.items()}
        best[lr] = min(found.values())
        for weights, distance in found.items():
            report(f"peer, lr {lr:g}, {weights}, validation", fd=distance)
    return min(best, key=lambda lr: best[lr])


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--steps", type=int, default=2750, help="training steps of ours, 64 images each")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds")
    parser.add_argument("--n", type=int, default=500, help="samples for the table")
    parser.add_argument("--n_val", type=int, default=200, help="samples for the choice of the peer's learning rate")
    parser.add_argument(
        "--evaluations", type=int, default=50, help="network evaluations of the peer's sampler, to 1000"
    )
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-4], help="learning rates of the peer")
    parser.add_argument("--dim", type=int, default=16, help="channels of the peer's network")
    parser.add_argument("--dim_mults", type=int, nargs="+", default=[1, 1, 2], help="channel multiplier of each level")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch of the peer")
    parser.add_argument("--out", help="folder for pictures of each model's samples")
    options, options.extra = parser.parse_known_args(args)
    torch.set_num_threads(1)
    extractor = load_extractor("fashion_mnist")
    distances: dict[tuple[str, int], list[float]] = {}
    floors: list[float] = []
    lr = None
    for seed in range(options.seeds):
        samplers: dict[tuple[str, int], Sampler] = {}
        with tempfile.TemporaryDirectory() as folder:
            for conditional in (True, False):
                model, data, budget = train_ours(options, seed, conditional, folder)
                parameters = sum(p.numel() for p in model.denoiser.parameters())
                name = f"ours, {'by class' if conditional else 'without classes'}"
                images = options.steps * data.batch_size
                report(name, seed, parameters=parameters, images=images, cpu_seconds=round(budget))
                samplers[name, model.steps] = our_sampler(model)
        data.setup()  # the training has set up its own splits only
        x = (data.split("train")[0] + 1) / 2
        trained = {one: train_peer(x, options, one, seed, budget) for one in ([lr] if lr else options.lr)}
        if lr is None:
            validation = Evaluator(extractor, data.split("val"), options.n_val)
            lr = choose_lr(trained, validation, options.evaluations)
        for name, diffusion in trained[lr].items():
            samplers[f"peer, {name}", options.evaluations] = peer_sampler(diffusion, options.evaluations)
        test = Evaluator(extractor, data.split("test"), options.n)
        floors.append(frechet(extractor, test.x, data.reference(options.n)))
        for key, sampler in samplers.items():
            fd, fake, seconds = test.distance(sampler)
            distances.setdefault(key, []).append(fd)
            report(key[0], seed, fd=fd, sampling_cpu_seconds=seconds)
            if options.out:
                Path(options.out).mkdir(parents=True, exist_ok=True)
                stem = key[0].replace(", ", "_").replace(" ", "_")
                save_png(Path(options.out) / f"{stem}_{seed}.png", render_samples(fake[:64]))
    print(f"learning rate of the peer, chosen on validation images: {lr:g}; floor {mean_std(floors, 2)}")
    rows = [[name, str(evaluations), mean_std(values, 2)] for (name, evaluations), values in distances.items()]
    print(markdown_table([f"n = {options.n}", "evaluations", "FD"], rows))


if __name__ == "__main__":
    main()
