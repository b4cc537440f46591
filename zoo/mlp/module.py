"""The dropout MLP as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from zoo.classifier import Classifier
from zoo.errors import UserError, check_at_least
from zoo.mlp.network import MLP


class MLPClassifier(Classifier):
    """A multilayer perceptron with dropout on the input and the hidden layers; blind to where pixels lie.

    Args:
        input_shape: of one sample, (C, H, W) for images or (D,) for points.
        num_classes: number of labels in the data.
        width: units of each hidden layer.
        depth: number of hidden layers.
        input_dropout: share of the inputs that are dropped in training.
        hidden_dropout: share of the hidden units that are dropped in training.
        batch_norm: normalize each hidden layer over the batch.
        max_norm: largest norm of a hidden unit's vector of incoming weights, kept after each step; 0 for none.
        **kwargs: of `zoo.classifier.Classifier`.
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
        max_norm: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_at_least(1, width=width, depth=depth)
        for name, share in {"input_dropout": input_dropout, "hidden_dropout": hidden_dropout}.items():
            if not 0 <= share < 1:
                raise UserError(f"{name} is {share}; it must be at least 0 and below 1")
        check_at_least(0, max_norm=max_norm)
        features, pixels = math.prod(input_shape), len(input_shape) == 3
        network = MLP(features, num_classes, width, depth, input_dropout, hidden_dropout, batch_norm, pixels)
        super().__init__(network, input_shape, num_classes, **kwargs)
        self.max_norm = max_norm

    def constrain(self) -> None:
        if self.max_norm:
            cast(MLP, self.network).limit_norms(self.max_norm)
