"""MLP with dropout that classifies clothes: the recipe mlp.yaml as one file of plain PyTorch.

In training every unit is dropped with some probability, so that each batch trains another one of exponentially many
networks; at test time a single network with all units stands for their mean (the lecture's section on overfitting;
Srivastava et al. 2014). The recipe also has batch normalization, weight decay and a triangular learning rate.

    python plain/mlp.py    # 40 epochs; prints the accuracy on the validation images

The recipe stops early, and keeps the weights that are best on the validation images; here the last ones are kept.
Shapes: N images of H x W pixels; W is the width of the hidden layers.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parents[1] / "datamodules" / "fashion_mnist.npz"
CLASSES = 10
VALIDATION = 2000  # images held out of the 12,000 for training
EPOCHS = 40
BATCH_SIZE = 256
WIDTH, DEPTH = 1024, 3  # units of a hidden layer, number of hidden layers
INPUT_DROPOUT, HIDDEN_DROPOUT = 0.1, 0.4  # probabilities that a pixel, and a hidden unit, is dropped
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
WARMUP = 0.2  # fraction of the run in which the learning rate rises; then it falls to zero, both linearly


class MLP(nn.Module):
    """Hidden layers of ReLUs; dropout on the input and after each hidden layer, never on the output."""

    def __init__(self, width):
        super().__init__()
        layers, features = [nn.Dropout(INPUT_DROPOUT)], 28 * 28
        for _ in range(DEPTH):
            layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            layers += [nn.Dropout(HIDDEN_DROPOUT)]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, CLASSES))

    def forward(self, x):
        return self.layers((x.flatten(1) + 1) / 2)  # pixels in [0, 1], so that a dropped one is black; logits (N, 10)


def load_data():
    """Training images in [-1, 1], (N, 28, 28), and labels, int64 (N,), and those that are held out for validation."""
    with np.load(DATA) as file:
        x, y = torch.from_numpy(file["train_images"]), torch.from_numpy(file["train_labels"]).long()
    x, order = x.float().div(127.5).sub(1), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[:VALIDATION], order[VALIDATION:]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def batches(x, y, batch_size):
    """Batches without end; every epoch has a new random order."""
    while True:
        # Two draws per epoch from torch's global generator: the seed that a DataLoader draws for its worker processes,
        # which is not used here, and the seed of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        for index in order.split(batch_size)[: len(x) // batch_size]:  # the incomplete last batch is left out
            yield x[index], y[index]


def learning_rate(step, steps):
    if step < (warmup := WARMUP * steps):
        return LEARNING_RATE * min(1.0, (step + 1) / warmup)
    return LEARNING_RATE * (1 - (step - warmup) / max(1, steps - warmup))


@torch.no_grad()
def accuracy(network, x, y):
    """Share of the images that are classified correctly, with all units."""
    network.eval()
    right = (network(x).argmax(1) == y).float().mean().item()
    network.train()
    return right


def train(steps=None, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains the network for `steps` batches, by default for all epochs, and returns it."""
    (x, y), validation = ([tensor.to(device) for tensor in split] for split in load_data())
    per_epoch = len(x) // batch_size
    steps = steps or EPOCHS * per_epoch
    torch.manual_seed(seed)
    network = MLP(width).to(device)
    matrices, vectors = ([p for p in network.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of biases and norms
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    for step, (images, labels) in zip(range(steps), batches(x, y, batch_size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % per_epoch == 0:
            share = accuracy(network, *validation)
            print(f"epoch {(step + 1) // per_epoch:3}   loss {loss.item():.3f}   accuracy {share:.2%}", flush=True)
    return network


if __name__ == "__main__":
    train(device="cuda" if torch.cuda.is_available() else "cpu")
