"""Predictions of a classifier: probabilities, names of classes, and uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

#: Most samples and classes that a notebook shows.
SHOWN_SAMPLES, SHOWN_CLASSES = 20, 10


class Prediction(NamedTuple):
    """The prediction for one sample.

    Attributes:
        class_name: most probable class.
        probability: its probability.
        probabilities: probability of every class, by name.
        entropy: predictive entropy, in nats.
        mutual_information: mutual information of class and ensemble member, in nats.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]
    entropy: float
    mutual_information: float

    def _repr_html_(self) -> str:
        likely = sorted(self.probabilities.items(), key=lambda pair: -pair[1])
        rows = "".join(
            f'<tr><td style="text-align: left">{escape(name)}</td><td>{p:.3f}</td><td style="text-align: left">'
            f'<meter value="{p:.4f}" style="width: 12em"></meter></td></tr>'
            for name, p in likely[:SHOWN_CLASSES]
        )
        rest = len(likely) - SHOWN_CLASSES
        more = f", {rest} further classes" if rest > 0 else ""
        return (
            f"<table>{rows}</table><small>entropy {self.entropy:.3f}, mutual information "
            f"{self.mutual_information:.3f} nats{more}</small>"
        )


@dataclass
class Predictions:
    """Predictive distributions of N samples over C classes, and their uncertainty in nats.

    `predictions[i]` and iteration give a `Prediction` for each sample; a notebook shows them as a table.

    Attributes:
        log_probabilities: logarithm of the mean probabilities, (N, C).
        entropy: predictive entropy, that of the mean probabilities, (N,).
        mutual_information: mutual information of class and ensemble member, (N,): predictive entropy minus the mean
            entropy of the members, the part of the uncertainty that is due to their disagreement (Houlsby et al. 2011,
            arXiv 1112.5745, eq. 2); zero for one member.
        class_names: one name per class.
    """

    log_probabilities: Tensor
    entropy: Tensor
    mutual_information: Tensor
    class_names: Sequence[str]

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions], class_names: Sequence[str]) -> Predictions:
        """Joins the predictions of several batches, on the CPU."""
        parts = [cls(torch.empty(0, len(class_names)), torch.empty(0), torch.empty(0), class_names), *parts]
        return cls(
            torch.cat([part.log_probabilities.cpu() for part in parts]),
            torch.cat([part.entropy.cpu() for part in parts]),
            torch.cat([part.mutual_information.cpu() for part in parts]),
            class_names,
        )

    @property
    def probabilities(self) -> Tensor:
        """Mean probabilities, (N, C)."""
        return self.log_probabilities.exp()

    @property
    def labels(self) -> Tensor:
        """Numbers of the most probable classes, int64 (N,)."""
        return self.log_probabilities.argmax(1)

    @property
    def names(self) -> list[str]:
        """Names of the most probable classes."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.log_probabilities)

    def __getitem__(self, index: int) -> Prediction:
        p = self.probabilities[index]
        label = int(p.argmax())
        by_name = dict(zip(self.class_names, p.tolist(), strict=True))
        uncertainty = (self.entropy[index].item(), self.mutual_information[index].item())
        return Prediction(self.class_names[label], p[label].item(), by_name, *uncertainty)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[index] for index in range(len(self)))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{index}</td><td>{escape(one.class_name)}</td><td>{one.probability:.3f}</td>"
            f"<td>{one.entropy:.3f}</td><td>{one.mutual_information:.3f}</td></tr>"
            for index, one in enumerate(islice(self, SHOWN_SAMPLES))
        )
        heads = "".join(f"<th>{name}</th>" for name in ("", "class", "probability", "entropy", "mutual information"))
        rest = len(self) - SHOWN_SAMPLES
        more = f"<small>and {rest:,} further samples</small>" if rest > 0 else ""
        return f"<table><tr>{heads}</tr>{rows}</table>{more}"


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each row of log-probabilities (N, C), in nats, (N,)."""
    return -(log_probabilities.exp() * log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)).sum(1)
