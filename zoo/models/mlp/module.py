"""The dropout MLP as a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from zoo.errors import check_at_least
from zoo.models.classifier import Classifier
from zoo.models.mlp.network import DropoutMLP


class MLPClassifier(Classifier):
    """Multilayer perceptron with dropout on the input and the hidden layers; it ignores the positions of pixels.

    Args:
        input_shape: shape of a sample, (C, H, W) for images or (D,) for points.
        num_classes: number of classes.
        width: units of each hidden layer.
        depth: number of hidden layers.
        input_dropout: probability that an input is dropped in training.
        hidden_dropout: probability that a hidden unit is dropped in training.
        batch_norm: normalize each hidden layer over the batch.
        max_norm: maximum norm of each hidden unit's incoming weights, enforced after each step; 0 for none.
        **kwargs: arguments of `zoo.models.classifier.Classifier`.
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
        check_at_least(0, max_norm=max_norm)
        network = partial(
            DropoutMLP,
            width=width,
            depth=depth,
            input_dropout=input_dropout,
            hidden_dropout=hidden_dropout,
            batch_norm=batch_norm,
        )
        super().__init__(input_shape, num_classes, network, **kwargs)
        self.max_norm = max_norm

    def after_optimizer_step(self) -> None:
        if self.max_norm:
            cast(DropoutMLP, self.network).limit_norms(self.max_norm)
