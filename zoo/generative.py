"""What the generative models share: the contract of `sample`, and a validation metric that falls as samples get better.

A generative model is a LightningModule with `sample(n, *, labels=None, generator=None) -> (n, *input_shape)`. The
distance between its samples and held-out data is measured on equal numbers of both: the Fréchet distance of classifier
features for images (`val/fd`), the sliced Wasserstein distance for points (`val/w1`). Beside it stands its floor
(`val/fd_floor`): the same distance between training and held-out data, which no generator can be expected to beat.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import Metric

from zoo.base import ZooModule
from zoo.errors import UserError
from zoo.metrics import FrechetDistance, SlicedWasserstein, extractor_for, load_extractor


def slerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation between latent vectors, which keeps the norm that a Gaussian's samples have.

    White 2016 (arXiv 1609.04468), section 2.1.

    Args:
        start: (..., D).
        end: (..., D).
        weight: 0 gives `start`, 1 gives `end`; broadcast against (..., 1).
    """
    unit_start, unit_end = (v / v.norm(dim=-1, keepdim=True) for v in (start, end))
    omega = (unit_start * unit_end).sum(-1, keepdim=True).clamp(-1, 1).acos().clamp_min(1e-6)
    return (((1 - weight) * omega).sin() * start + (weight * omega).sin() * end) / omega.sin()


def sample_seeds(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Seeds for `n` samples, int64 (n,): by the same generator the first ones are the same however many there are."""
    device = generator.device if generator else None
    return torch.randint(2**62, (n,), generator=generator, device=device)


def seeds_at(places: Tensor, seed: int) -> Tensor:
    """Seeds int64 (n,) for the samples at these places (n,) of a split, which do not depend on how it is cut."""
    return sample_seeds(int(places.max()) + 1, torch.Generator().manual_seed(seed))[places]


def distance_for(input_shape: Sequence[int], extractor: str = "auto") -> tuple[str, Metric] | None:
    """The distance between samples and data of this shape, with the name that it is logged under.

    Args:
        input_shape: (C, H, W) for images, (D,) for points.
        extractor: of the features of images, by its name; "auto" for the one that suits the shape, "none" for no
            distance at all.
    """
    if extractor == "none":
        return None
    if len(input_shape) == 1:
        return "w1", SlicedWasserstein(input_shape[0])
    network = extractor_for(input_shape) if extractor == "auto" else load_extractor(extractor)
    return None if network is None else ("fd", FrechetDistance(network))


class GenerativeModule(ZooModule):
    """Base of the generative models: a subclass implements `sample`, and its own training.

    The floor is measured on data modules that have `reference(n)`, the first n training samples, as the zoo's have.

    Args:
        input_shape: of one sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of labels in the data.
        conditional: whether samples are drawn by label.
        extractor: see `distance_for`.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int = 0, conditional: bool = False, extractor: str = "auto"
    ) -> None:
        super().__init__()
        if conditional and num_classes < 1:
            raise UserError("conditional is true, but the data has no classes: num_classes is 0")
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.conditional = conditional
        distance = distance_for(self.input_shape, extractor)
        self.distance_name = distance[0] if distance else None
        self.distance = distance[1] if distance else None
        self.floor = distance[1].clone() if distance else None
        self._floors: dict[str, float] = {}
        self._reference: Tensor | None = None
        self._places = torch.arange(0)

    @abstractmethod
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Draws `n` samples; mode and global random numbers stay as they were.

        Args:
            n: how many.
            labels: int64 (n,) for a conditional model; drawn uniformly where they are not given.
            generator: random numbers; the same ones give the same samples on every device.
            seeds: int64 (n,), one for each sample, in place of the generator: the same seed, and label, give the same
                sample in every batch.

        Returns:
            (n, *input_shape), images in [-1, 1].
        """

    def draw_labels(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Labels (n,), drawn uniformly, for a conditional model; None for any other."""
        if not self.conditional:
            return None
        device = generator.device if generator else self.device
        return torch.randint(self.num_classes, (n,), generator=generator, device=device).to(self.device)

    # Validation and test

    def on_validation_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._locate(len(batch[0]), batch_idx)

    def on_test_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._locate(len(batch[0]), batch_idx)

    def _locate(self, n: int, batch_idx: int) -> None:
        """Finds the places (n,) of a batch's samples in the split, which the processes take in turn.

        What is random in evaluation depends on them, so that what is measured is the same on one process and on many.
        """
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        start = int(self._places[-1]) + ranks if batch_idx else rank
        self._places = start + torch.arange(n) * ranks

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._compare(batch, batch_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._compare(batch, batch_idx, "test")

    def predict_step(self, *_: Any) -> None:
        raise UserError(f"{type(self).__name__} predicts nothing about data; to draw from it, use the command sample")

    def _compare(self, batch: tuple[Tensor, Tensor], batch_idx: int, split: str) -> None:
        """Adds a batch, and as many samples, to the distance and, the first time, to its floor."""
        if self.distance is None:
            return
        x, y = batch
        # The same noise in every validation: what changes between two of them is the model. It has seeds of its own,
        # so that training sees the same random numbers with and without validation.
        fake = self.sample(len(x), labels=y if self.conditional else None, seeds=seeds_at(self._places, seed=0))
        self.distance.update(x, real=True)
        self.distance.update(fake, real=False)
        name = f"{split}/{self.distance_name}"
        self.log(name, self.distance, on_epoch=True, prog_bar=True)
        self._compare_with_training_data(x, batch_idx, name)
        self.inspect_samples(fake, x, batch_idx, split)

    def inspect_samples(self, fake: Tensor, real: Tensor, batch_idx: int, split: str) -> None:
        """Called with the samples that are compared with each batch, for a subclass that measures more on them."""

    def _compare_with_training_data(self, x: Tensor, batch_idx: int, name: str) -> None:
        """Adds a batch, and as many training samples, to the floor, which is measured once."""
        reference = getattr(getattr(self.trainer, "datamodule", None), "reference", None)
        if reference is None or name in self._floors or self.trainer.sanity_checking:
            return
        floor = cast(Metric, self.floor)
        if batch_idx == 0:
            floor.reset()
            loaders = self.trainer.val_dataloaders if name.startswith("val") else self.trainer.test_dataloaders
            n = len(cast(Any, loaders).dataset)
            samples = reference(n)
            # The distance depends on the number of samples: without as many of them there is no floor to compare with.
            self._reference = samples[self.global_rank :: self.trainer.world_size] if len(samples) == n else None
        remaining = self._reference
        if remaining is None:
            return
        floor.update(x, real=True)
        floor.update(remaining[: len(x)].to(x), real=False)
        self._reference = remaining[len(x) :]

    def on_validation_epoch_end(self) -> None:
        self._log_floor("val")

    def on_test_epoch_end(self) -> None:
        self._log_floor("test")

    def _log_floor(self, split: str) -> None:
        name = f"{split}/{self.distance_name}"
        if self._reference is not None and self.floor is not None and not self.trainer.sanity_checking:
            self._reference = None
            value = self._floors[name] = self.floor.compute().item()
            self.floor.reset()
            meaning = f"{name} is the {self._describe_distance()}"
            rank_zero_info(f"{meaning}; floor, training against held-out data: {value:.4g}")
        if name in self._floors:
            self.log(f"{name}_floor", self._floors[name], sync_dist=True)

    def _describe_distance(self) -> str:
        if isinstance(self.distance, FrechetDistance):
            network = self.distance.extractor
            weights = f"{network.name}, weights {network.sha256[:8]}"
            return f"Fréchet distance in the {network.num_features} features of the classifier {weights}"
        return "sliced Wasserstein-1 distance"
