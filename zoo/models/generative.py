"""Base of the generative models: the contract of `sample`, and the distance between samples and held-out data.

A generative model is a LightningModule with `sample(n, *, labels=None, generator=None) -> (n, *input_shape)`. The
distance is measured on equal numbers of samples and data: the Fréchet distance in features of a classifier for images
(`val/fd`), the sliced Wasserstein distance for points (`val/w1`). Its floor (`val/fd_floor`) is the same distance
between training and held-out data, which a generator cannot be expected to beat: the mean over several draws of
training samples. A conditional model is asked for samples of the held-out data's own classes, so its floor is that of
training samples of these classes, which is lower than that of an unconditional model.

A test of an image model also measures precision, recall, density and coverage in the same features (`test/recall` and
so on; see `zoo.metrics.fidelity`), which tell poor samples from missing kinds of them. Their floors
(`test/recall_floor`) are the values of training samples as well, but these scores are higher for better samples: a
generator approaches them from below. Validation leaves them out, because they would slow down training.
"""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from zoo.contracts import ReferenceSamples, TrainingSamples, check_condition, data_of, left_out, offers
from zoo.errors import NonFiniteError, UserError
from zoo.metrics import FidelityDiversity, FrechetDistance, InceptionFeatures, distance_for
from zoo.models.base import ZooModule
from zoo.models.precision import widen
from zoo.seeding import NoiseMemory, seeds_at

FLOOR_DRAWS = 4  # draws of training samples over which a floor is averaged
CHUNK = 500  # samples per call of the feature extractor


def slerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical linear interpolation between latent vectors, which preserves the norm of Gaussian samples.

    White 2016 (arXiv 1609.04468), section 2.1.

    Args:
        start: first vectors, (..., D).
        end: second vectors, (..., D).
        weight: 0 for `start`, 1 for `end`; broadcast against (..., 1).
    """
    unit_start, unit_end = (v / v.norm(dim=-1, keepdim=True) for v in (start, end))
    omega = (unit_start * unit_end).sum(-1, keepdim=True).clamp(-1, 1).acos().clamp_min(1e-6)
    return (((1 - weight) * omega).sin() * start + (weight * omega).sin() * end) / omega.sin()


def check_samples(samples: Tensor, name: str) -> None:
    """Raises a `NonFiniteError` if samples are NaN or Inf, of which a picture would show nothing.

    Args:
        samples: (N, ...).
        name: what they were drawn from.
    """
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {len(samples)} samples of {name} are NaN or Inf and not written: its weights are damaged, "
            "training had diverged, or an option is too extreme; take another checkpoint, or leave out options"
        )


def describe_batch(batch: Any) -> str:
    """What a batch is, in a few words: a type, or the types of its parts."""
    if isinstance(batch, (list, tuple)):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
    names = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
    return f"a {type(batch).__name__}{names}"


class GenerativeModule(ZooModule):
    """Base of the generative models. A subclass implements `sample` and its own training.

    The floor of the distance is measured if the data module has `reference(n)`, the first n training samples, and over
    several draws and by class if it has `training_samples`.

    Args:
        input_shape: shape of a sample, (C, H, W) for images in [-1, 1] or (D,) for points.
        num_classes: number of classes in the data.
        conditional: draw samples by class, of which there must be two.
        extractor: feature extractor of the Fréchet distance; see `zoo.metrics.distance_for`.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int = 0, conditional: bool = False, extractor: str = "auto"
    ) -> None:
        super().__init__()
        check_condition(conditional, num_classes)
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.conditional = conditional
        distance = distance_for(self.input_shape, extractor)
        self.distance_name = distance[0] if distance else None
        self.distance = distance[1] if distance else None
        self.floor = distance[1].clone() if distance else None
        has_features = isinstance(self.distance, FrechetDistance)
        self.fidelity = FidelityDiversity() if has_features else None
        self.fidelity_floor = FidelityDiversity() if has_features else None
        self.noise_memory = NoiseMemory()  # of validation
        self._floors: dict[str, float] = {}
        self._floor_is_due = False
        self._floor_labels: list[Tensor] = []
        self._floor_seeds: list[Tensor] = []
        self._checked = False

    @abstractmethod
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Draws samples; the module's mode and the global random state are left unchanged.

        Args:
            n: number of samples.
            labels: classes for a conditional model, int64 (n,); drawn uniformly by default, each by its sample's seed.
            generator: random number generator; the same state gives the same samples on every device, and the first of
                them are the same for every n.
            seeds: seed of each sample, int64 (n,), instead of a generator; the same seed and class give the same sample
                in every batch.

        Returns:
            (n, *input_shape), images in [-1, 1].
        """

    def draw_labels(self, seeds: Tensor) -> Tensor | None:
        """Classes (n,) of samples by their seeds, int64 (n,), uniform if these are; None for an unconditional model."""
        return (seeds % self.num_classes).to(self.device) if self.conditional else None

    # Batches

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Samples of a batch and, for a conditional model, their labels.

        Args:
            batch: samples (N, *input_shape), which are widened to float32; or a list of these and labels, int64 (N,),
                which may be left out for an unconditional model.

        Raises:
            UserError: it is something else.
        """
        parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, (list, tuple)) else []
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
            raise UserError(f"a batch is {describe_batch(batch)}; it must be (samples, labels), or samples alone")
        if self.conditional and len(parts) == 1:
            raise UserError("conditional is true, but the batches have no labels; set conditional to false")
        return widen(parts[0]), parts[1] if self.conditional else None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self._checked:  # the first batch only, since it waits for the device
            self._checked = True
            self._check_samples(self.unpack(batch)[0])

    def _check_samples(self, x: Tensor) -> None:
        """Raises a `UserError` for samples of another shape or type; warns of images that are not in [-1, 1]."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise UserError(
                f"the data's samples have the shape {tuple(x.shape[1:])}, and the model is for {self.input_shape}"
            )
        if not x.is_floating_point():
            raise UserError(f"the data's samples are {x.dtype}; they must be floats, images in [-1, 1]")
        low, high = x.min().item(), x.max().item()
        if len(self.input_shape) == 3 and (low >= 0 or low < -1.01 or high > 1.01):
            rank_zero_warn(
                f"the images of the first batch are in [{low:.3g}, {high:.3g}], and the model draws in [-1, 1]: "
                "scale them in the data module's on_after_batch_transfer"
            )

    # Validation and test

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.distance, FrechetDistance) and isinstance(self.distance.extractor, InceptionFeatures):
            self.distance.extractor.load()  # what is missing is said before the training
        left_out(self, data_of(self.trainer), self.uses_of_data(stage))

    def teardown(self, stage: str) -> None:
        self.noise_memory.clear()

    def uses_of_data(self, stage: str) -> dict[type, str]:
        """What is left out on data that lacks a contract of `zoo.contracts`, for one line at the start of a run."""
        measured = self.distance is not None and stage in ("fit", "validate", "test")
        return {ReferenceSamples: f"the floor of val/{self.distance_name}"} if measured else {}

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._find_indices(len(self.unpack(batch)[0]), batch_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._find_indices(len(self.unpack(batch)[0]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._compare(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._compare(batch, batch_idx, "test")

    def predict_step(self, *_: Any) -> None:
        raise UserError(f"{type(self).__name__} makes no predictions; to draw from it, use the command sample")

    def _compare(self, batch: Any, batch_idx: int, split: str) -> None:
        """Adds a batch and as many samples to the distance and, in the first epoch, to its floor."""
        if self.distance is None:
            return
        x, labels = self.unpack(batch)
        seeds = seeds_at(self._indices, seed=0)
        # The same noise in every validation, with separate seeds: only the model changes between two validations, and
        # validation does not change the random numbers of training.
        with self.noise_memory.use():
            fake = self.sample(len(x), labels=labels, seeds=seeds)
        real_features = self._features(x)
        for features, real in ((real_features, True), (self._features(fake), False)):
            self._update(self.distance, self.fidelity, features, real, split, seeds)
        name = f"{split}/{self.distance_name}"
        self.log(name, self.distance, on_epoch=True, prog_bar=True)
        self._prepare_floor(real_features, labels, batch_idx, split, seeds)
        self.inspect_samples(fake, x, batch_idx, split)

    def _features(self, x: Tensor) -> Tensor:
        """What the metrics compare: features of images (N, d), or points as they are."""
        return self.distance.extractor(x) if isinstance(self.distance, FrechetDistance) else x

    @staticmethod
    def _update(
        distance: Metric, fidelity: Metric | None, features: Tensor, real: bool, split: str, seeds: Tensor
    ) -> None:
        """Adds samples to the metrics that are measured on the split."""
        distance.update(features, real=real)
        if fidelity is not None and split == "test":
            fidelity.update(features, real=real, seeds=seeds)

    def inspect_samples(self, fake: Tensor, real: Tensor, batch_idx: int, split: str) -> None:
        """Called with the samples that are compared with each batch, for further measurements in a subclass."""

    def _prepare_floor(
        self, features: Tensor, labels: Tensor | None, batch_idx: int, split: str, seeds: Tensor
    ) -> None:
        """Adds a batch of held-out samples to the floors, which are measured once."""
        data = data_of(self.trainer)
        measured = f"{split}/{self.distance_name}" in self._floors
        if measured or self.trainer.sanity_checking or not offers(data, ReferenceSamples):
            return
        if batch_idx == 0:
            self._reset_floor()
            n = self._count_held_out(split)
            # The metrics depend on the number of samples, so the floor needs as many.
            self._floor_is_due = len(data.reference(n)) == n
        if self._floor_is_due:
            self._update(cast(Metric, self.floor), self.fidelity_floor, features, True, split, seeds)
            self._floor_labels.append((seeds.new_zeros(len(seeds)) if labels is None else labels).cpu())
            self._floor_seeds.append(seeds)

    def _reset_floor(self) -> None:
        """Forgets the held-out samples that a floor is measured against."""
        self._floor_is_due, self._floor_labels, self._floor_seeds = False, [], []
        for metric in (self.floor, self.fidelity_floor):
            if metric is not None:
                metric.reset()

    def _count_held_out(self, split: str) -> int:
        """Number of samples in the validation or the test split."""
        loaders = self.trainer.val_dataloaders if split == "val" else self.trainer.test_dataloaders
        return len(cast(Any, loaders).dataset)

    def _draw_training_samples(self, split: str) -> Iterator[Tensor]:
        """Draws of as many training samples as held-out ones were seen by this process, of their classes."""
        data, labels = data_of(self.trainer), torch.cat(self._floor_labels)
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        n = self._count_held_out(split)
        if not offers(data, TrainingSamples):
            yield data.reference(n)[rank::ranks][: len(labels)]
            return
        for draw in range(FLOOR_DRAWS):
            if self.conditional:
                yield data.training_samples(len(labels), labels=labels, seed=ranks * draw + rank)
            else:
                yield data.training_samples(n, seed=draw)[rank::ranks][: len(labels)]

    def _measure_floor(self, split: str) -> dict[str, list[float]]:
        """Values of each metric between held-out data and each draw of training samples, by the metric's name."""
        found: dict[str, list[float]] = {}
        for samples in self._draw_training_samples(split):
            # The held-out samples are in these.
            floor, fidelity = (metric and metric.clone() for metric in (self.floor, self.fidelity_floor))
            seeds = torch.cat(self._floor_seeds)[: len(samples)]
            for part, part_seeds in zip(samples.split(CHUNK), seeds.split(CHUNK), strict=True):
                features = self._features(part.to(self.device))
                self._update(cast(Metric, floor), fidelity, features, False, split, part_seeds)
            values = {f"{split}/{self.distance_name}": cast(Metric, floor).compute().item()}
            for name, value in (values | self._scores(fidelity, split)).items():
                found.setdefault(name, []).append(value)
        return found

    @staticmethod
    def _scores(fidelity: Metric | None, split: str) -> dict[str, float]:
        """Precision, recall, density and coverage by the metric's name; nothing where they are not measured."""
        if fidelity is None or split != "test":
            return {}
        scores = fidelity.compute()
        return dict(zip((f"{split}/{name}" for name in scores._fields), torch.stack(scores).tolist(), strict=True))

    def on_validation_epoch_end(self) -> None:
        self._log_floors("val")

    def on_test_epoch_end(self) -> None:
        for name, score in self._scores(self.fidelity, "test").items():
            self.log(name, score, sync_dist=True)
        if self.fidelity is not None:
            self.fidelity.reset()
        self._log_floors("test")

    def _log_floors(self, split: str) -> None:
        if self._floor_is_due and not self.trainer.sanity_checking:
            found = self._measure_floor(split)
            self._reset_floor()
            self._floors |= {name: statistics.mean(values) for name, values in found.items()}
            name, values = next(iter(found.items()))
            spread = f" ± {statistics.stdev(values):.2g} ({len(values)} draws)" if len(values) > 1 else ""
            which = " of the same classes" if self.conditional and len(values) > 1 else ""
            meaning = f"{name} is the {self._describe_distance(self._count_held_out(split))}"
            mean = f"{self._floors[name]:.4g}"
            rank_zero_info(f"{meaning}; floor, training against held-out data{which}: {mean}{spread}")
        for name, floor in self._floors.items():
            if name.startswith(f"{split}/"):
                self.log(f"{name}_floor", floor, sync_dist=True)

    def _describe_distance(self, n: int) -> str:
        if isinstance(self.distance, FrechetDistance):
            network = self.distance.extractor
            usual = f" at n = {n:,}, where the literature has 50,000" if isinstance(network, InceptionFeatures) else ""
            return f"Fréchet distance in the {network.description}{usual}"
        return "sliced Wasserstein-1 distance"
