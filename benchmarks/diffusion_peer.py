"""Our diffusion model compared with denoising-diffusion-pytorch at equal parameters, CPU seconds and features.

The peer (P. Wang, `pip install denoising-diffusion-pytorch`; version 2.3.4 was measured) is used as its README shows:
`Unet`, `GaussianDiffusion` with 1000 steps, Adam, batches of 32 images, the moving average of its own `EMA` class, and
its own samplers. It trains on the same images for the CPU seconds that ours took; its width gives about as many
parameters as ours has. Both are measured on equal numbers of samples, next to the floor of as many images. Usage:

    python benchmarks/diffusion_peer.py --root data --ckpt_path best.ckpt --cpu_seconds 840
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor

from common import frechet, new_parser
from zoo import Diffusion
from zoo.datamodules import FashionMNIST
from zoo.metrics import load_extractor
from zoo.plotting.images import save_png
from zoo.plotting.samples import render_samples

CHUNK = 100  # samples per call of a sampler


def train_peer(x: Tensor, options: argparse.Namespace) -> EMA:
    """Trains the peer on images (N, 1, 28, 28) in [0, 1] for `options.cpu_seconds`; returns its moving average."""
    torch.manual_seed(options.seed)
    network = Unet(dim=options.dim, dim_mults=tuple(options.dim_mults), channels=1, flash_attn=False)
    diffusion = GaussianDiffusion(network, image_size=28)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=options.lr, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    parameters = sum(p.numel() for p in network.parameters())
    start, images, seconds, loss = time.process_time(), 0, 0.0, torch.tensor(0.0)
    while seconds < options.cpu_seconds:
        batch = x[torch.randint(len(x), (options.batch_size,))]
        loss = diffusion(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        images, seconds = images + len(batch), time.process_time() - start
    row = {"parameters": parameters, "images": images, "loss": round(loss.item(), 4), "cpu_seconds": round(seconds)}
    print(json.dumps(row), flush=True)
    return ema


def sample_in_chunks(n: int, sample: Callable[[int], Tensor]) -> tuple[Tensor, float]:
    """`n` samples, and the CPU seconds that they took."""
    start = time.process_time()
    parts = [sample(min(CHUNK, n - done)) for done in range(0, n, CHUNK)]
    return torch.cat(parts), time.process_time() - start


def sample_ddim(diffusion: GaussianDiffusion, n: int, evaluations: int) -> Tensor:
    """Samples of the peer's DDIM, which it uses if `sampling_timesteps` is below its 1000 steps."""
    diffusion.sampling_timesteps = evaluations
    try:
        return diffusion.ddim_sample((n, 1, 28, 28))
    finally:
        diffusion.sampling_timesteps = diffusion.num_timesteps


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--ckpt_path", help="checkpoint of our model, measured on the same numbers of samples")
    parser.add_argument("--cpu_seconds", type=float, default=840.0, help="CPU seconds of the peer's training")
    parser.add_argument("--n", type=int, default=200, help="samples of the peer's default sampler")
    parser.add_argument("--n_ddim", type=int, default=1000, help="samples of the peer's DDIM")
    parser.add_argument("--ddim", type=int, default=50, help="network evaluations of the peer's DDIM")
    parser.add_argument("--dim", type=int, default=16, help="channels of the peer's network")
    parser.add_argument("--dim_mults", type=int, nargs="+", default=[1, 1, 2], help="channel multiplier of each level")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate; the peer's is 1e-4 for 100,000 steps")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", help=".png file for the peer's samples; their number is added to its name")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    data = FashionMNIST(root=options.root)
    data.setup()
    (train, _), (test, labels) = data.split("train"), data.split("test")
    extractor = load_extractor("fashion_mnist")
    if options.ckpt_path:
        ours = Diffusion.load_from_checkpoint(options.ckpt_path, map_location="cpu", weights_only=True)
        for n in (options.n, options.n_ddim):
            given = labels[:n] if ours.conditional else None
            fake = ours.sample(n, labels=given, generator=torch.Generator().manual_seed(0))
            row = {
                "model": "ours",
                "n": n,
                "evaluations": ours.steps,
                "fd": round(frechet(extractor, test[:n], fake), 2),
            }
            print(json.dumps({**row, "floor": round(frechet(extractor, test[:n], data.reference(n)), 2)}), flush=True)
    diffusion = train_peer((train + 1) / 2, options).ema_model.eval()
    samplers: dict[str, tuple[int, Callable[[int], Tensor]]] = {
        f"ddim, {options.ddim}": (options.n_ddim, lambda n: sample_ddim(diffusion, n, options.ddim)),
        "default, 1000": (options.n, lambda n: diffusion.sample(batch_size=n)),
    }
    for name, (n, sample) in samplers.items():
        fake, seconds = sample_in_chunks(n, sample)
        fake = fake * 2 - 1
        row = {"model": "peer", "sampler": name, "n": n, "fd": round(frechet(extractor, test[:n], fake), 2)}
        print(json.dumps({**row, "cpu_seconds": round(seconds)}), flush=True)
        if options.out:
            out = Path(options.out)
            save_png(out.with_stem(f"{out.stem}_{n}"), render_samples(fake[:64]))


if __name__ == "__main__":
    main()
