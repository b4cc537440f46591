"""GAN that draws clothes by class: the recipe gan.yaml as one file of plain PyTorch.

A generator G turns noise z into images, and a discriminator D tells them from data; each is trained against the other
(the lecture's section on generative adversarial networks; Goodfellow et al. 2014, arXiv 1406.2661). The loss is
relativistic: D judges pairs of a real and a generated image (Jolicoeur-Martineau 2018, arXiv 1807.00734). With gradient
penalties on data (R1) and on samples (R2) the game converges (R3GAN: Huang et al. 2024, arXiv 2501.05441).

    python plain/gan.py    # 3,000 steps; writes gan.png

Shapes: N images of C channels, H x W pixels; Z latent numbers; W is the width of the networks.
"""

import copy
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parents[1] / "datamodules" / "fashion_mnist.npz"
CLASSES = 10
VALIDATION = 2000  # images held out of the 12,000 for training
STEPS = 3000  # batches; each is one step of D and one of G
BATCH_SIZE = 32
WIDTH = 32  # channels of both networks at half the resolution of the images
LATENT = 32  # length of z
LEARNING_RATE, BETAS = 4e-3, (0.0, 0.99)  # no momentum, which would amplify the oscillations of the game
FINAL = 0.1  # learning rate at the end, as a fraction of that at the start
GAMMA = 0.5  # weight of the penalties, applied as gamma / 2
PENALTY_INTERVAL = 4  # steps between two penalized steps; the weight is multiplied by it
HALF_LIFE = 10_000  # images after which an old value's weight in the moving average of G has halved


class Generator(nn.Module):
    """A linear map to 7x7 pixels, then two transposed convolutions that double them."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, LATENT)
        self.project = nn.Sequential(nn.Linear(2 * LATENT, 2 * width * 7 * 7), nn.LeakyReLU(0.2))
        self.upsample = nn.Sequential(
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),  # (N, W, 14, 14)
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),  # (N, 1, 28, 28)
            nn.Tanh(),
        )

    def forward(self, z, labels):
        h = torch.cat([z, self.embedding(labels)], dim=1)  # (N, 2 Z)
        return self.upsample(self.project(h))  # (N, 1, 28, 28) in [-1, 1]


class Discriminator(nn.Module):
    """Two strided convolutions, and a logit that depends on the class by an inner product.

    The projection discriminator: Miyato and Koyama 2018, arXiv 1802.05637, eq. 3.
    """

    def __init__(self, width):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),  # (N, W, 14, 14)
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # (N, 2 W, 7, 7)
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        features = 2 * width * 7 * 7
        self.linear = nn.Linear(features, 1)
        self.embedding = nn.Embedding(CLASSES, features)
        nn.init.normal_(self.embedding.weight, std=features**-0.5)

    def forward(self, x, labels):
        h = self.hidden(x)  # (N, features)
        return self.linear(h).squeeze(1) + (h * self.embedding(labels)).sum(1)  # logits (N,)


def training_data():
    """Training images in [-1, 1], (N, 1, 28, 28), and labels, int64 (N,), without those held out."""
    with np.load(DATA) as file:
        x, y = torch.from_numpy(file["train_images"]).unsqueeze(1), torch.from_numpy(file["train_labels"]).long()
    index = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[VALIDATION:]
    return x[index].float().div(127.5).sub(1), y[index]


def batches(x, y, batch_size):
    """Batches without end; every epoch has a new random order."""
    while True:
        # Two draws per epoch from torch's global generator: the seed that a DataLoader draws for its worker processes,
        # which is not used here, and the seed of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        for index in order.split(batch_size)[: len(x) // batch_size]:  # the incomplete last batch is left out
            yield x[index], y[index]


@torch.no_grad()
def update_average(average, network, images, seen):
    """Moving average of the weights, with a half-life of at most a twentieth of the images seen so far."""
    weight = 1 - 0.5 ** (images / min(HALF_LIFE, 0.05 * seen))
    for a, w in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(w, weight)


def train(steps=STEPS, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains the networks; returns generator, discriminator and the generator's moving average."""
    x, y = (tensor.to(device) for tensor in training_data())
    torch.manual_seed(seed)
    generator, discriminator = Generator(width).to(device), Discriminator(width).to(device)
    average = copy.deepcopy(generator).requires_grad_(False)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
        for network in (generator, discriminator)
    ]
    for step, (real, labels) in zip(range(steps), batches(x, y, batch_size), strict=False):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + (FINAL - 1) * step / steps)

        # D learns that of each pair (real, fake) the first is real, with a small gradient at data and at samples.
        with torch.no_grad():
            fake = generator(torch.randn(batch_size, LATENT, device=device), labels)
        penalized = step % PENALTY_INTERVAL == 0
        real.requires_grad_(penalized)
        fake.requires_grad_(penalized)
        logits = discriminator(torch.cat([real, fake]), torch.cat([labels, labels]))  # (2 N,)
        real_logits, fake_logits = logits.chunk(2)
        loss_d = total = F.softplus(fake_logits - real_logits).mean()
        if penalized:
            gradients = torch.autograd.grad(logits.sum(), (real, fake), create_graph=True)  # each (N, 1, 28, 28)
            penalty = torch.stack([g.square().flatten(1).sum(1).mean() for g in gradients]).sum()
            total = loss_d + penalty * (GAMMA / 2 * PENALTY_INTERVAL)
        total.backward(inputs=list(discriminator.parameters()))
        optimizers[1].step()
        optimizers[1].zero_grad()

        # G learns the opposite, with new noise and the new D.
        fake_logits = discriminator(generator(torch.randn(batch_size, LATENT, device=device), labels), labels)
        with torch.no_grad():
            real_logits = discriminator(real, labels)
        loss_g = F.softplus(real_logits - fake_logits).mean()
        loss_g.backward(inputs=list(generator.parameters()))
        optimizers[0].step()
        optimizers[0].zero_grad()
        update_average(average, generator, batch_size, (step + 1) * batch_size)

        if step % 100 == 0:
            print(f"step {step:5}   loss of D {loss_d.item():.3f}   of G {loss_g.item():.3f}", flush=True)
    return generator, discriminator, average


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
    *_, average = train(device=device)
    with torch.no_grad():
        z, labels = torch.randn(80, LATENT, device=device), torch.arange(10, device=device).repeat_interleave(8)
        write_png("gan.png", average(z, labels), columns=8)  # a row for each class
    print("wrote gan.png")
