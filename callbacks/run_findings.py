"""What is worth looking at when training has ended, and needs the model: mistakes of a classifier, and copies.

Both are computed once, with the weights of the chosen checkpoint, and written as small files, from which a report is
made (`zoo.report`).
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from PIL import Image
from torch import Tensor

from zoo.callbacks.run_folder import checkpoint_path
from zoo.checkpoints.reading import read_checkpoint
from zoo.contracts import (
    ClassNames,
    Decoding,
    Generative,
    PredictiveClassifier,
    ReferenceSamples,
    SamplePaths,
    data_of,
    is_conditional,
    offers,
)
from zoo.files import atomic_write
from zoo.metrics.near_copies import nearest_samples
from zoo.plotting.images import to_uint8
from zoo.seeding import capture_random_state, restore_random_state

MISTAKES, NEAREST, CONFUSION = "mistakes.json", "nearest.json", "confusion.csv"
MOST_SEEN = 2000  # validation samples that are looked at
MOST_SECONDS = 5.0  # after which no further batch is begun
MOST_CLASSES = 1000  # of a confusion matrix that is written
LARGEST = 160  # pixels of the longer side of a picture
REFERENCE = 20_000  # training pictures that are searched
REFERENCE_VALUES = 2**26  # at most this many pixel values of them, 256 MiB
HELD_OUT = 256  # validation pictures with which samples are compared


@contextmanager
def chosen_weights(trainer: Trainer, model: LightningModule) -> Iterator[str]:
    """Puts the weights of the chosen checkpoint into the model, and those of the end of training back.

    Yields:
        Name of the checkpoint; empty if there is none that fits, and the weights are those of the end of training.
    """
    path = checkpoint_path(trainer)
    before: dict[str, Any] = {}
    name = ""
    if path and Path(path).is_file():
        state = read_checkpoint(path)["state_dict"]
        own = model.state_dict()
        if {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in state.items()}:
            before = {key: value.detach().to("cpu", copy=True) for key, value in own.items()}  # a device may be full
            model.load_state_dict(state)
            name = Path(path).name
    try:
        yield name
    finally:
        if before:
            model.load_state_dict(before)


def validation_batches(trainer: Trainer, model: Any, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `(x, y)` of the validation split, on the model's device, as validation has them.

    The first `most` samples, as far as they can be read within `MOST_SECONDS`; nothing if batches are of another form.
    """
    loader: Any = trainer.val_dataloaders
    until, seen = time.monotonic() + MOST_SECONDS, 0
    stage, states = trainer.state.stage, capture_random_state(model.device)
    trainer.state.stage = RunningStage.VALIDATING  # so that nothing is augmented
    try:
        for batch in loader if getattr(loader, "dataset", None) is not None else ():
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), model.device)
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(b, Tensor) for b in batch)):
                return
            x, y = batch[0][: most - seen], batch[1][: most - seen]
            seen += len(x)
            with trainer.precision_plugin.forward_context(), torch.no_grad():
                yield x, y
            if seen >= most or time.monotonic() > until:
                return
    finally:
        trainer.state.stage = stage
        restore_random_state(states, model.device)


def write_mistakes(trainer: Trainer, model: Any, folder: Path, most: int, weights: str) -> None:
    """Writes the most confident mistakes on validation samples, and the confusion matrix.

    For a model that offers `zoo.contracts.PredictiveClassifier`; nothing is written for others.

    Args:
        trainer: Trainer at the end of `fit`.
        model: its model.
        folder: folder of the files.
        most: number of mistakes.
        weights: name of the checkpoint whose weights the model has.
    """
    if not offers(model, PredictiveClassifier):
        return
    tally = _Tally(most)
    for x, y in validation_batches(trainer, model, MOST_SEEN):
        if y.ndim != 1 or y.is_floating_point():
            return
        places = tally.seen + torch.arange(len(x))
        tally.add(x, y.cpu(), model.predictive(x, places).probabilities.float().cpu())
    if not tally.seen:
        return
    names, paths = _class_names(trainer, tally.classes), _paths(trainer)
    mistakes = []
    for number, (probability, index, label, predicted, true_probability, x) in enumerate(tally.worst):
        mistakes.append(
            {
                "index": index,
                "path": paths[index] if index < len(paths) else None,
                "picture": _save_picture(folder / f"mistake_{number:02d}.png", x),
                "true": names[label],
                "predicted": names[predicted],
                "probability": probability,
                "true_probability": true_probability,
            }
        )
    if tally.confusion is not None:
        with atomic_write(folder / CONFUSION, "w", newline="", encoding="utf-8") as file:
            rows = [[name, *row] for name, row in zip(names, tally.confusion.tolist(), strict=True)]
            csv.writer(file).writerows([["true class / predicted class", *names], *rows])
    found = {"seen": tally.seen, "wrong": tally.wrong, "weights": weights, "mistakes": mistakes}
    _write_json(folder / MISTAKES, found)


class _Tally:
    """Mistakes among the samples so far.

    Args:
        most: number of mistakes that are kept.

    Attributes:
        seen: number of samples.
        wrong: number of mistakes.
        classes: number of classes.
        confusion: confusion matrix, int64 (C, C), rows are true classes; None for too many classes.
        worst: the most confident mistakes: probability of the predicted class, index of the sample, true class,
            predicted class, probability of the true class, and the sample itself.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen = self.wrong = self.classes = 0
        self.confusion: Tensor | None = None
        self.worst: list[tuple[float, int, int, int, float, Tensor]] = []

    def add(self, x: Tensor, y: Tensor, p: Tensor) -> None:
        """Adds samples (N, ...), their classes, int64 (N,), and their probabilities (N, C)."""
        probability, predicted = p.max(1)
        wrong = (predicted != y).nonzero().flatten()
        self.classes = p.shape[1]
        if self.classes <= MOST_CLASSES:
            if self.confusion is None:
                self.confusion = torch.zeros(self.classes, self.classes, dtype=torch.int64)
            self.confusion.index_put_((y, predicted), torch.ones_like(y), accumulate=True)
        for place in wrong[probability[wrong].topk(min(self.most, len(wrong))).indices].tolist():
            label = int(y[place])
            numbers = (self.seen + place, label, int(predicted[place]), float(p[place, label]))
            self.worst.append((float(probability[place]), *numbers, x[place]))
        self.worst = sorted(self.worst, key=lambda mistake: -mistake[0])[: self.most]
        self.seen, self.wrong = self.seen + len(x), self.wrong + len(wrong)


def _class_names(trainer: Trainer, count: int) -> list[str]:
    data = data_of(trainer)
    names = [str(name) for name in data.class_names] if offers(data, ClassNames) else []
    return names if len(names) == count else list(map(str, range(count)))


def _paths(trainer: Trainer) -> list[str]:
    """Names of the files of the validation split in their order, without the folder above; empty if not known."""
    data = data_of(trainer)
    if trainer.world_size > 1 or not offers(data, SamplePaths):  # a rank has a part of the samples
        return []
    return ["/".join(path.parts[-2:]) for path in data.paths("val")]


def write_nearest(trainer: Trainer, model: Any, folder: Path, count: int, weights: str) -> None:
    """Writes samples of a generative image model beside the training pictures that are nearest to them.

    The distance is the root mean square difference of pixel values, in gray levels from 0 to 255. For a model that
    offers `zoo.contracts.Generative`, on data with `ReferenceSamples`; nothing is written for others.

    Args:
        trainer: Trainer at the end of `fit`.
        model: its model.
        folder: folder of the files.
        count: number of samples.
        weights: name of the checkpoint whose weights the model has.
    """
    data = data_of(trainer)
    shape = tuple(getattr(model, "input_shape", None) or getattr(data, "input_shape", None) or ())
    if (
        len(shape) != 3
        or not offers(model, Generative)
        or offers(model, Decoding)
        or not offers(data, ReferenceSamples)
    ):
        return
    labels = torch.arange(count) % model.num_classes if is_conditional(model) else None
    samples = model.sample(count, labels=labels, generator=torch.Generator().manual_seed(0)).detach().float().cpu()
    if samples.shape[1:] != shape or not samples.isfinite().all():
        return
    training = data.reference(max(1, min(REFERENCE, REFERENCE_VALUES // torch.Size(shape).numel()))).float().cpu()
    distances, index = nearest_samples(samples, training)
    scale = 127.5 / torch.Size(shape).numel() ** 0.5  # from [-1, 1] to gray levels, from a sum to a mean
    pairs = []
    for number, place in enumerate(distances.argsort().tolist()):
        pictures = {"sample": samples[place], "nearest": training[index[place]]}
        names = {kind: _save_picture(folder / f"{kind}_{number:02d}.png", x) for kind, x in pictures.items()}
        pairs.append({**names, "distance": float(distances[place]) * scale})
    held_out = [x.float().cpu() for x, _ in validation_batches(trainer, model, HELD_OUT)]
    usual = nearest_samples(torch.cat(held_out), training)[0].median().item() * scale if held_out else None
    found = {"searched": len(training), "held_out": usual, "held_out_samples": sum(map(len, held_out))}
    _write_json(folder / NEAREST, {**found, "weights": weights, "pairs": pairs})


def _save_picture(path: Path, x: Tensor) -> str | None:
    """Writes one image (C, H, W) in [-1, 1] of one or three channels as PNG; returns the name of the file."""
    if x.ndim != 3 or len(x) not in (1, 3):
        return None
    picture = Image.fromarray(to_uint8(x[None])[0].squeeze(-1) if len(x) == 1 else to_uint8(x[None])[0])
    picture.thumbnail((LARGEST, LARGEST))
    picture.save(path, "PNG")
    return path.name


def _write_json(path: Path, values: Any) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)


def remove_findings(folder: Path) -> None:
    """Removes what an earlier end of the run has left."""
    for pattern in (MISTAKES, NEAREST, CONFUSION, "mistake_*.png", "sample_*.png", "nearest_*.png"):
        for path in folder.glob(pattern):
            path.unlink()
