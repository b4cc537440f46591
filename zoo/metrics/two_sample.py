"""Classifier two-sample test: accuracy of a classifier between two sets of points.

Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests", arXiv 1610.06545.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import check_at_least

WIDTH = 64  # units of each of the two hidden layers
BATCH = 500
LEARNING_RATE = 4e-3  # of Adam
EPOCHS = 200  # at most
PATIENCE = 10  # epochs without a higher validation accuracy, after which training stops
VALIDATION = 10  # one of so many points for fitting is kept for validation


def two_sample_accuracy(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Held-out accuracy of a classifier between two sets of points; 1/2 if they cannot be distinguished.

    A perceptron with two hidden layers of 64 units is fitted to a random half of each set, until its accuracy on a
    tenth of these points stops rising, and tested on the other halves. If the sets have one distribution, the standard
    error of the accuracy is 1 / (2 sqrt(N)). Runs on the CPU; the global random state stays as it is.

    Args:
        x: first points, (N, D).
        y: second points, (N, D).
        seed: random seed of the split and of the classifier.

    Raises:
        UserError: a set has fewer than two points.
    """
    check_at_least(2, **{"number of points": min(len(x), len(y))})
    generator = torch.Generator().manual_seed(seed)
    points = torch.cat([x, y]).detach().cpu().double()
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))])
    # Half of each set: by chance alone, the more frequent set in one half would be the rarer one in the other.
    halves = [torch.randperm(len(z), generator=generator).chunk(2) for z in (x, y)]
    fit, held_out = (torch.cat([first, second + len(x)]) for first, second in zip(*halves, strict=True))
    fit = fit[torch.randperm(len(fit), generator=generator)]
    points = ((points - points[fit].mean(0)) / (points[fit].std(0, correction=0) + 1e-12)).float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        classifier = _fit(points[fit], labels[fit], generator)
    return _accuracy(classifier, points[held_out], labels[held_out])


def _fit(points: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    """Classifier with the weights of the epoch of the highest validation accuracy."""
    classifier = nn.Sequential(
        nn.Linear(points.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    )
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    validation = max(1, len(points) // VALIDATION)
    best, best_epoch, state = -1.0, 0, classifier.state_dict()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(points) - validation, generator=generator).add(validation).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(classifier(points[batch]).squeeze(1), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = _accuracy(classifier, points[:validation], labels[:validation])
        if accuracy > best:
            best, best_epoch, state = accuracy, epoch, copy.deepcopy(classifier.state_dict())
        if epoch - best_epoch >= PATIENCE:
            break
    classifier.load_state_dict(state)
    return classifier


@torch.no_grad()
def _accuracy(classifier: nn.Module, points: Tensor, labels: Tensor) -> float:
    return ((classifier(points).squeeze(1) > 0) == (labels > 0)).double().mean().item()
