"""Our diffusion model beside denoising-diffusion-pytorch's, at equal parameters, seconds and features.

The peer (P. Wang, `pip install denoising-diffusion-pytorch`; 2.3.4 was measured) is used as its README shows: `Unet`,
`GaussianDiffusion` with 1000 steps, Adam, batches of 32 images, an average of the weights by its own class, and its own
sampler. It is trained for the CPU seconds that ours took, on the same images; its width is chosen for about as many
parameters as ours has. Both are measured on equal numbers of samples, beside the floor at as many. Run it as

    python benchmarks/diffusion_peer.py --root data --ckpt_path best.ckpt --cpu_seconds 840
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor

from zoo import Diffusion
from zoo.datamodules import FashionMNIST
from zoo.metrics import FrechetDistance, load_extractor
from zoo.plotting.images import save_png
from zoo.plotting.samples import render_samples

CHUNK = 100  # samples drawn at a time


def distance(real: Tensor, fake: Tensor) -> float:
    metric = FrechetDistance(load_extractor("fashion_mnist"))
    for images in real.split(500):
        metric.update(images, real=True)
    for images in fake.split(500):
        metric.update(images, real=False)
    return metric.compute().item()


def train_peer(x: Tensor, arguments: argparse.Namespace) -> EMA:
    """Trains the peer on images (N, 1, 28, 28) in [0, 1] for so many CPU seconds; returns the average of it."""
    torch.manual_seed(arguments.seed)
    network = Unet(dim=arguments.dim, dim_mults=tuple(arguments.dim_mults), channels=1, flash_attn=False)
    diffusion = GaussianDiffusion(network, image_size=28)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=arguments.lr, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    parameters = sum(p.numel() for p in network.parameters())
    start, images, seconds, total, loss = time.process_time(), 0, 0.0, arguments.cpu_seconds, torch.tensor(0.0)
    while seconds < total:
        batch = x[torch.randint(len(x), (arguments.batch_size,))]
        loss = diffusion(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        images, seconds = images + len(batch), time.process_time() - start
    row = {"parameters": parameters, "images": images, "loss": round(loss.item(), 4), "cpu_seconds": round(seconds)}
    print(json.dumps(row), flush=True)
    return average


def draw(n: int, sample: Callable[[int], Tensor]) -> tuple[Tensor, float]:
    """`n` samples, and the CPU seconds that they took."""
    start = time.process_time()
    parts = [sample(min(CHUNK, n - done)) for done in range(0, n, CHUNK)]
    return torch.cat(parts), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--ckpt_path", help="our model, to be measured at the same numbers of samples")
    parser.add_argument("--cpu_seconds", type=float, default=840.0)
    parser.add_argument("--n", type=int, default=200, help="samples by the peer's default of 1000 evaluations")
    parser.add_argument("--n_ddim", type=int, default=1000, help="samples by its DDIM")
    parser.add_argument("--ddim", type=int, default=50, help="evaluations of its DDIM")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--dim_mults", type=int, nargs="+", default=[1, 1, 2])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="its trainer's default is 1e-4, for 100,000 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a PNG of the peer's samples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = FashionMNIST(root=arguments.root)
    data.setup()
    (train, _), (test, labels) = data.split("train"), data.split("test")
    if arguments.ckpt_path:
        ours = Diffusion.load_from_checkpoint(arguments.ckpt_path, map_location="cpu", weights_only=True)
        for n in (arguments.n, arguments.n_ddim):
            wanted = labels[:n] if ours.conditional else None
            fake = ours.sample(n, labels=wanted, generator=torch.Generator().manual_seed(0))
            row = {"model": "ours", "n": n, "evaluations": ours.steps, "fd": round(distance(test[:n], fake), 2)}
            print(json.dumps({**row, "floor": round(distance(test[:n], data.reference(n)), 2)}), flush=True)
    average = train_peer((train + 1) / 2, arguments)
    diffusion = average.ema_model.eval()
    samplers: dict[str, tuple[int, Callable[[int], Tensor]]] = {
        f"ddim, {arguments.ddim}": (arguments.n_ddim, lambda n: ddim(diffusion, n, arguments.ddim)),
        "default, 1000": (arguments.n, lambda n: diffusion.sample(batch_size=n)),
    }
    for name, (n, sample) in samplers.items():
        fake, seconds = draw(n, sample)
        fake = fake * 2 - 1
        row = {"model": "peer", "sampler": name, "n": n, "fd": round(distance(test[:n], fake), 2)}
        print(json.dumps({**row, "cpu_seconds": round(seconds)}), flush=True)
        if arguments.out:
            out = Path(arguments.out)
            save_png(out.with_stem(f"{out.stem}_{n}"), render_samples(fake[:64]))


def ddim(diffusion: GaussianDiffusion, n: int, evaluations: int) -> Tensor:
    """The peer's other sampler, which it takes where `sampling_timesteps` is below its 1000."""
    diffusion.sampling_timesteps = evaluations
    try:
        return diffusion.ddim_sample((n, 1, 28, 28))
    finally:
        diffusion.sampling_timesteps = diffusion.num_timesteps


if __name__ == "__main__":
    main()
