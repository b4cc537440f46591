"""The multilayer perceptron with dropout of the lecture's section on overfitting (Srivastava et al. 2014)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DropoutMLP(nn.Module):
    """Hidden layers of ReLUs; dropout on the input and after each hidden layer's activation, never on the output.

    Args:
        input_shape: shape of a sample; the pixels of images (C, H, W) are rescaled from [-1, 1] to [0, 1], so that a
            dropped pixel is black.
        num_classes: number of logits.
        width: units of each hidden layer.
        depth: number of hidden layers.
        input_dropout: probability that an input is dropped in training.
        hidden_dropout: probability that a hidden unit is dropped in training.
        batch_norm: normalize each hidden layer over the batch, before its activation.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        width: int = 1024,
        depth: int = 3,
        input_dropout: float = 0.2,
        hidden_dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        for name, size in {"width": width, "depth": depth}.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        for name, probability in {"input_dropout": input_dropout, "hidden_dropout": hidden_dropout}.items():
            if not 0 <= probability < 1:
                raise ValueError(f"{name} is {probability}; it must be at least 0 and below 1")
        self.pixels = len(input_shape) == 3
        in_features = math.prod(input_shape)
        self.input_dropout = nn.Dropout(input_dropout)
        self.hidden = nn.Sequential()
        for _ in range(depth):
            self.hidden.append(nn.Linear(in_features, width, bias=not batch_norm))
            if batch_norm:
                self.hidden.append(nn.BatchNorm1d(width))
            self.hidden.append(nn.ReLU())
            self.hidden.append(nn.Dropout(hidden_dropout))
            in_features = width
        self.output = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, ...) to logits (N, num_classes)."""
        x = x.flatten(1)
        if self.pixels:
            x = (x + 1) / 2
        return self.output(self.hidden(self.input_dropout(x)))

    @torch.no_grad()
    def limit_norms(self, max_norm: float) -> None:
        """Limits the norm of each hidden unit's incoming weights to `max_norm` (paper, section 5.1)."""
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                layer.weight.renorm_(2, 0, max_norm)
