"""Small ResNet that classifies clothes: the recipe resnet.yaml as one file of plain PyTorch.

Residual blocks y = relu(F(x, w) + x) (the lecture's section on residual networks; He et al. 2015, arXiv 1512.03385) in
stages that begin with a convolution and max-pooling, as in D. Page's ResNet-9 (DAWNBench, 2018). With a one-cycle
learning rate, label smoothing, and a moving average of the weights it learns in few passes over the data. The first
convolution whitens patches of the training images and is not trained (Jordan 2024, arXiv 2404.00498); in the first half
of the run the images are smaller, where they cost less (J. Howard et al., DAWNBench 2018).

    python plain/resnet.py    # 22 epochs; prints the accuracy on the validation images

The recipe keeps the weights that are best on the validation images; here the last ones are kept.
Shapes: N images of C channels, H x W pixels; a stage has W channels.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parents[1] / "datamodules" / "fashion_mnist.npz"
CLASSES = 10
VALIDATION = 2000  # images held out of the 12,000 for training
EPOCHS = 22
BATCH_SIZE = 128
WIDTH = 32  # channels of the first stage; the other two have 2 and 4 times as many
SMALL = 0.7  # ratio by which the sides of images are reduced in the first half of the run
CUTOUT = 8  # side in pixels of a square that is blanked in each image
LABEL_SMOOTHING = 0.1
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.5, 0.9, 5e-4
WARMUP = 0.2  # fraction of the run in which the learning rate rises; then it falls to zero, both linearly
HALF_LIFE = 20_000  # images after which an old value's weight in the moving average has halved
WHITENED = 5000  # images from whose patches the filters of the first convolution are computed
MEASURED = 512  # images on which the statistics of the averaged network's batch normalization are measured


class Stage(nn.Module):
    """Convolution, pooling, and one residual block of one convolution."""

    def __init__(self, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        x = F.relu(self.norm(F.max_pool2d(self.conv(x), 2)))  # (N, W, H / 2, W / 2)
        return F.relu(self.block(x) + x)


class ResNet(nn.Module):
    """A 2x2 convolution that whitens, three stages, the maximum of each channel over the image, and a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 2)  # (N, 8, 27, 27)
        self.stages = nn.Sequential(Stage(8, width), Stage(width, 2 * width), Stage(2 * width, 4 * width))
        self.head = nn.Linear(4 * width, CLASSES)
        for module in self.modules():  # variance 2 / fan_out, which preserves that of the gradient through ReLUs
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # the faster one on most devices

    def forward(self, x):
        x = F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.head(self.stages(x).amax((2, 3)))  # logits (N, 10)


@torch.no_grad()
def whiten(convolution, x):
    """Sets filters 2x2 to the principal directions of patches, scaled to unit variance, each with both signs."""
    patches = F.unfold(to_floats(x).double().cpu(), 2).transpose(1, 2).flatten(0, 1)  # (patches, 4)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 0.01).sqrt()).T.view(4, 1, 2, 2)
    convolution.weight.requires_grad_(False).copy_(torch.cat([filters, -filters]))


def load_data():
    """Training images, uint8 (N, 1, 28, 28), and labels, int64 (N,), and those that are held out for validation."""
    with np.load(DATA) as file:
        x, y = torch.from_numpy(file["train_images"]).unsqueeze(1), torch.from_numpy(file["train_labels"]).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[:VALIDATION], order[VALIDATION:]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def to_floats(x):
    return x.float().div(127.5).sub(1)  # [0, 255] to [-1, 1]


def augment(x):
    """Mirrors half of the images (N, 1, 28, 28), and blanks a square at a random place in each."""
    n, size = len(x), x.shape[-1]
    x = torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
    centers = (torch.randint(size, (n, 1), device=x.device) for _ in range(2))
    rows, columns = ((torch.arange(size, device=x.device) - c + CUTOUT // 2) // CUTOUT == 0 for c in centers)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 128)


def batches(x, y, batch_size):
    """Batches without end: augmented images in [-1, 1] and labels; every epoch has a new random order."""
    while True:
        # Two draws per epoch from torch's global generator: the seed that a DataLoader draws for its worker processes,
        # which is not used here, and the seed of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        for index in order.split(batch_size)[: len(x) // batch_size]:  # the incomplete last batch is left out
            yield to_floats(augment(x[index])), y[index]


def shrink(x):
    """Reduces the sides of images (N, 1, H, W): bilinear interpolation as a product with a matrix on either side."""
    size, new = x.shape[-1], round(SMALL * x.shape[-1])
    lines = torch.eye(size).view(1, 1, size, size)
    matrix = F.interpolate(lines, (new, size), mode="bilinear", antialias=True)[0, 0].to(x.device)
    return matrix @ x @ matrix.T


def learning_rate(step, steps):
    if step < (warmup := WARMUP * steps):
        return LEARNING_RATE * min(1.0, (step + 1) / warmup)
    return LEARNING_RATE * (1 - (step - warmup) / max(1, steps - warmup))


@torch.no_grad()
def measure_statistics(average, x, batch_size):
    """Measures the running statistics of batch normalization under the averaged weights, always on the same images.

    The mean of the original's statistics would be wrong: it belongs to other weights.
    """
    norms = [module for module in average.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean over all batches
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: max(MEASURED, batch_size)].to(x.device)
    with torch.random.fork_rng():  # the random numbers of training stay as they are
        torch.manual_seed(0)
        for index in order.split(batch_size)[: len(order) // batch_size]:
            average(to_floats(augment(x[index])))
    average.eval()


@torch.no_grad()
def accuracy(network, x, y):
    """Share of the images that are classified correctly by the mean logits of the image and its mirror image."""
    x = to_floats(x)
    return ((network(x) + network(x.flip(-1))).argmax(1) == y).float().mean().item()


def train(steps=None, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains for `steps` batches, by default for all epochs; returns the network and its moving average."""
    (x, y), validation = ([tensor.to(device) for tensor in split] for split in load_data())
    per_epoch = len(x) // batch_size
    steps = steps or EPOCHS * per_epoch
    torch.manual_seed(seed)
    network = ResNet(width)
    whiten(network.stem, x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:WHITENED]])
    network.to(device)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of biases and norms
    options = {"momentum": MOMENTUM, "nesterov": True, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, **options)
    for step, (images, labels) in zip(range(steps), batches(x, y, batch_size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        images = shrink(images) if step < steps / 2 else images
        loss = F.cross_entropy(network(images), labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # Moving average: the half-life is at most a twentieth of the images seen so far.
        weight = 1 - 0.5 ** (batch_size / min(HALF_LIFE, 0.05 * (step + 1) * batch_size))
        with torch.no_grad():
            for a, w in zip(average.parameters(), network.parameters(), strict=True):
                a.lerp_(w, weight)
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            measure_statistics(average, x, batch_size)
            share = accuracy(average, *validation)
            print(f"step {step + 1:5}   loss {loss.item():.3f}   accuracy {share:.2%}", flush=True)
    return network, average


if __name__ == "__main__":
    train(device="cuda" if torch.cuda.is_available() else "cpu")
