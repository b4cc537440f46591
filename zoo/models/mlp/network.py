"""The multilayer perceptron with dropout of the lecture's section on overfitting (Srivastava et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Hidden layers of ReLUs; dropout on the input and after each hidden layer's activation, never on the output.

    Args:
        in_features: length of a flattened sample.
        num_classes: number of logits.
        width: units of each hidden layer.
        depth: number of hidden layers.
        input_dropout: probability that an input is dropped in training.
        hidden_dropout: probability that a hidden unit is dropped in training.
        batch_norm: normalize each hidden layer over the batch, before its activation.
        pixels: rescale inputs from [-1, 1] to [0, 1], so that a dropped pixel is black.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        width: int = 1024,
        depth: int = 3,
        input_dropout: float = 0.2,
        hidden_dropout: float = 0.5,
        batch_norm: bool = False,
        pixels: bool = False,
    ) -> None:
        super().__init__()
        self.pixels = pixels
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
