"""Vision Transformer that classifies clothes: the recipe vit.yaml as one file of plain PyTorch.

An image is a sequence of patches, each of which attends to all others (Dosovitskiy et al. 2021, arXiv 2010.11929), with
sinusoids of row and column as positions and the mean over the patches instead of a class token (Beyer et al. 2022,
arXiv 2205.01580). On small data sets a ResNet is more accurate, since a convolution has locality built in.

    python plain/vit.py    # 14 epochs; prints the accuracy on the validation images

The recipe keeps the weights that are best on the validation images; here the last ones are kept.
Shapes: N images of 28x28 pixels, T = 16 patches, W channels, H heads of C = W / H channels.
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parents[1] / "datamodules" / "fashion_mnist.npz"
CLASSES = 10
VALIDATION = 2000  # images held out of the 12,000 for training
EPOCHS = 14
BATCH_SIZE = 128
PATCH, SIDE = 7, 4  # side of a patch in pixels, and of an image in patches
LAYERS, WIDTH, HEADS = 4, 96, 3
LABEL_SMOOTHING = 0.1
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
WARMUP = 0.1  # fraction of the run in which the learning rate rises; then it falls to zero, as half a cosine
CLIP = 1.0  # maximum norm of the gradient
HALF_LIFE = 20_000  # images after which an old value's weight in the moving average has halved


class Block(nn.Module):
    """Attention, and a feed-forward network of each patch; both are the lecture's y = F(x, w) + x."""

    def __init__(self, width):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.feed_forward_norm = nn.LayerNorm(width)

    def attention(self, x):
        """softmax(Q K' / sqrt(C)) V in each head."""
        q, k, v = (h.unflatten(-1, (HEADS, -1)).transpose(1, 2) for h in (self.q(x), *self.kv(x).chunk(2, dim=-1)))
        h = F.scaled_dot_product_attention(q, k, v)  # (N, H, T, C)
        return self.out(h.transpose(1, 2).flatten(2))  # (N, T, W)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class ViT(nn.Module):
    """Patches as vectors plus their positions, blocks, and a linear layer on the mean over the patches."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, PATCH, stride=PATCH)
        frequencies = 10_000.0 ** (-torch.arange(0, width // 2, 2).float() / (width // 2))  # (W / 4,)
        angles = torch.outer(torch.arange(SIDE).float(), frequencies)
        line = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (4, W / 2)
        grid = torch.cat([line.repeat_interleave(SIDE, dim=0), line.repeat(SIDE, 1)], dim=1)  # rows, then columns
        self.register_buffer("positions", grid)  # (T, W)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        for block in self.blocks:  # the sum of all branches has the same variance at every depth
            for layer in (block.out, block.feed_forward[2]):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features * 2 * LAYERS))
        self.head = nn.Linear(width, CLASSES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2) + self.positions  # (N, T, W)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # logits (N, 10)


def load_data():
    """Training images in [-1, 1], (N, 1, 28, 28), and labels, int64 (N,), and those held out for validation."""
    with np.load(DATA) as file:
        x, y = torch.from_numpy(file["train_images"]).unsqueeze(1), torch.from_numpy(file["train_labels"]).long()
    x, order = x.float().div(127.5).sub(1), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[:VALIDATION], order[VALIDATION:]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def mirror(x):
    """Mirrors half of the images (N, 1, 28, 28)."""
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)


def batches(x, y, batch_size):
    """Batches without end, half of the images mirrored; every epoch has a new random order."""
    while True:
        # Two draws per epoch from torch's global generator: the seed that a DataLoader draws for its worker processes,
        # which is not used here, and the seed of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        for index in order.split(batch_size)[: len(x) // batch_size]:  # the incomplete last batch is left out
            yield mirror(x[index]), y[index]


def learning_rate(step, steps):
    if step < (warmup := WARMUP * steps):
        return LEARNING_RATE * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return LEARNING_RATE * (1 - (1 - math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def accuracy(network, x, y):
    """Share of the images that are classified correctly by the mean logits of the image and its mirror image."""
    return ((network(x) + network(x.flip(-1))).argmax(1) == y).float().mean().item()


def train(steps=None, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains for `steps` batches, by default for all epochs; returns the network and its moving average."""
    (x, y), validation = ([tensor.to(device) for tensor in split] for split in load_data())
    per_epoch = len(x) // batch_size
    steps = steps or EPOCHS * per_epoch
    torch.manual_seed(seed)
    network = ViT(width).to(device)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    matrices, vectors = ([p for p in network.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of biases and norms
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    for step, (images, labels) in zip(range(steps), batches(x, y, batch_size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = F.cross_entropy(network(images), labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        nn.utils.clip_grad_norm_(matrices + vectors, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        # Moving average: the half-life is at most a twentieth of the images seen so far.
        weight = 1 - 0.5 ** (batch_size / min(HALF_LIFE, 0.05 * (step + 1) * batch_size))
        with torch.no_grad():
            for a, w in zip(average.parameters(), network.parameters(), strict=True):
                a.lerp_(w, weight)
        if (step + 1) % per_epoch == 0:
            share = accuracy(average, *validation)
            print(f"epoch {(step + 1) // per_epoch:3}   loss {loss.item():.3f}   accuracy {share:.2%}", flush=True)
    return network, average


if __name__ == "__main__":
    train(device="cuda" if torch.cuda.is_available() else "cpu")
