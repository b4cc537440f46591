"""Diffusion model that draws digits by class: the recipe diffusion.yaml as one file of plain PyTorch.

Noise of a known level is added to images, and a network learns to remove it (the lecture's section on diffusion). The
denoiser gives the force that drives the reverse diffusion, from noise to data: 2 k_B T (denoised - x) / sigma^2. Noise
levels and preconditioning are those of EDM (Karras et al. 2022, arXiv 2206.00364), the solver is DPM-Solver++(2M) (Lu
et al. 2022, arXiv 2211.01095).

    python plain/diffusion.py    # 1,500 steps, two minutes on two cores; writes diffusion.png

Shapes: N images of C channels, H x W pixels; W is the width of the network, 2 W that of the condition.
"""

import copy
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parents[1] / "datamodules" / "digits.npz"
CLASSES = 10
TEST, VALIDATION = 297, 300  # images held out of the 1,797
REPEATS = 40  # passes over the training images per epoch
STEPS, BATCH_SIZE = 1500, 128
WIDTH, BLOCKS = 64, 3
NOISE_MEAN, NOISE_STD = -1.2, 1.2  # mean and standard deviation of ln(sigma) in training
CLASS_DROPOUT = 0.1  # probability that a label is dropped, which also trains an unconditional denoiser
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.01
WARMUP = 0.01  # fraction of the run in which the learning rate rises; then it falls to zero, as half a cosine
HALF_LIFE = 20_000  # images after which an old value's weight in the moving average has halved
SIGMA_MIN, SIGMA_MAX, SAMPLING_STEPS = 0.002, 80.0, 8  # of sampling


def zeroed(layer):
    """A layer without effect at the start, so that a residual block that ends in it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Block(nn.Module):
    """The lecture's y = F(x, w) + x: normalization, scale and shift by the condition, two 3x3 convolutions."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(max(1, width // 16), width)
        self.modulate = zeroed(nn.Linear(2 * width, 2 * width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x, condition):
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)  # (N, W, 1, 1) each
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.conv2(F.silu(self.conv1(F.silu(h))))  # (N, W, H, W)


class Network(nn.Module):
    """Residual blocks at full resolution, which is enough for 8x8 pixels; the label CLASSES means no class."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 1, 16) * math.pi)
        self.noise = nn.Sequential(nn.Linear(32, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.label = nn.Embedding(CLASSES + 1, 2 * width)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.norm = nn.GroupNorm(max(1, width // 16), width)
        self.out = zeroed(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x, c_noise, labels):
        angles = c_noise.unsqueeze(1) * self.frequencies  # (N, 16)
        condition = F.silu(self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(labels))  # (N, 2 W)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.silu(self.norm(h)))  # (N, 1, H, W)


class Denoiser(nn.Module):
    """E[clean | x] = mean + c_skip (x - mean) + c_out network(c_in (x - mean)), all of unit variance at any sigma."""

    def __init__(self, width, mean, sigma_data):
        super().__init__()
        self.network = Network(width).to(memory_format=torch.channels_last)  # the faster one on most devices
        self.register_buffer("mean", mean)  # of the data, (1, H, W)
        self.register_buffer("sigma_data", sigma_data)  # standard deviation of the data about it

    def parts(self, x, sigma, labels):
        """The network's output (N, 1, H, W), and the factors c_skip and c_out (N, 1, 1, 1), at noise levels (N,)."""
        total = (sigma.square() + self.sigma_data.square()).sqrt()
        c_skip, c_out, c_in = (self.sigma_data / total).square(), sigma * self.sigma_data / total, 1 / total
        inputs = ((x - self.mean) * c_in.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        return self.network(inputs, sigma.log() / 4, labels), c_skip.view(-1, 1, 1, 1), c_out.view(-1, 1, 1, 1)

    def loss(self, clean, x, sigma, labels):
        output, c_skip, c_out = self.parts(x, sigma, labels)
        target = (clean - self.mean - c_skip * (x - self.mean)) / c_out
        return (output - target).square().flatten(1).mean(1).mean()

    def forward(self, x, sigma, labels):
        output, c_skip, c_out = self.parts(x, sigma, labels)
        return self.mean + c_skip * (x - self.mean) + c_out * output  # (N, 1, H, W)


def training_data():
    """Training images in [-1, 1], (N, 1, 8, 8), and labels, int64 (N,), without those held out."""
    with np.load(DATA) as file:
        x, y = torch.from_numpy(file["images"]).double(), torch.from_numpy(file["labels"]).long()
    x = x.mul(255 / 16).round().float().div(127.5).sub(1).unsqueeze(1)  # from [0, 16] by way of [0, 255]
    index = torch.randperm(len(x), generator=torch.Generator().manual_seed(1998))[TEST:]
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[VALIDATION:]]
    return x[index], y[index]


def batches(x, y, batch_size):
    """Batches without end; an epoch of REPEATS passes has a new random order."""
    while True:
        # Draws two seeds: a DataLoader's for its worker processes, which is not used here, and that of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(REPEATS * len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        for index in (order % len(x)).split(batch_size)[: len(order) // batch_size]:  # without an incomplete one
            yield x[index], y[index]


def learning_rate(step, steps):
    if step < (warmup := WARMUP * steps):
        return LEARNING_RATE * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return LEARNING_RATE * (1 - (1 - math.cos(math.pi * progress)) / 2)


def train(steps=STEPS, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains the denoiser; returns it and the moving average of its weights."""
    x, y = (tensor.to(device) for tensor in training_data())
    torch.manual_seed(seed)
    denoiser = Denoiser(width, x.mean(0), (x - x.mean(0)).square().mean().sqrt()).to(device)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    matrices, vectors = ([p for p in denoiser.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of biases and norms
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    for step, (clean, labels) in zip(range(steps), batches(x, y, batch_size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        labels = labels.masked_fill(torch.rand(batch_size, device=device) < CLASS_DROPOUT, CLASSES)
        # Log-normal noise levels, one from each of N intervals of equal probability.
        quantile = (torch.arange(batch_size, device=device) + torch.rand(batch_size, device=device)) / batch_size
        normal = torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)).float()
        sigma = (NOISE_MEAN + NOISE_STD * normal).exp()  # (N,)
        noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
        loss = denoiser.loss(clean, noisy, sigma, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # Moving average: the half-life is at most a twentieth of the images seen so far.
        weight = 1 - 0.5 ** (batch_size / min(HALF_LIFE, 0.05 * (step + 1) * batch_size))
        with torch.no_grad():
            for a, w in zip(average.parameters(), denoiser.parameters(), strict=True):
                a.lerp_(w, weight)
        if step % 50 == 0:
            print(f"step {step:5}   loss {loss.item():.3f}", flush=True)
    return denoiser, average


@torch.no_grad()
def sample(denoiser, labels):
    """Draws an image of each class in `labels`, (N,), by DPM-Solver++(2M); (N, 1, H, W) in [-1, 1]."""
    high, low = SIGMA_MAX ** (1 / 7), SIGMA_MIN ** (1 / 7)  # noise levels in equal steps of their seventh root
    sigmas = [(high + index / (SAMPLING_STEPS - 1) * (low - high)) ** 7 for index in range(SAMPLING_STEPS)] + [0.0]
    x, now = denoiser.mean + SIGMA_MAX * torch.randn(len(labels), *denoiser.mean.shape, device=labels.device), None
    for index, sigma in enumerate(sigmas[:-1]):
        before, after = now, sigmas[index + 1]
        now = target = denoiser(x, torch.full((len(x),), sigma, device=x.device), labels)
        if 0 < index < SAMPLING_STEPS - 1:  # extrapolates the denoiser along -ln sigma
            ratio = math.log(sigma / after) / math.log(sigmas[index - 1] / sigma)
            target = now + ratio / 2 * (now - before)
        x = torch.lerp(target, x, after / sigma)
    return x.clamp(-1, 1)


def write_png(path, images, columns):
    """Writes images (N, 1, H, W) in [-1, 1] as a grid of gray pixels."""
    height, width = images.shape[2:]
    pixels = images.add(1).mul(127.5).round().to(torch.uint8).cpu().view(-1, columns, height, width).transpose(1, 2)
    rows = [b"\0" + bytes(row.tolist()) for row in pixels.reshape(-1, columns * width)]  # 0: no filter
    head = struct.pack(">IIBBBBB", columns * width, len(rows), 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, average = train(device=device)
    images = sample(average, torch.arange(10, device=device).repeat_interleave(8))  # a row for each class
    write_png("diffusion.png", images.repeat_interleave(4, 2).repeat_interleave(4, 3), columns=8)
    print("wrote diffusion.png")
