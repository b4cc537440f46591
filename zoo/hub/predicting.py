"""Predictions of a classifier for files of pictures, as a stream: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.callbacks.prediction_table import open_table, prediction_columns, prediction_values
from zoo.contracts import ClassPrediction, PredictiveClassifier, offers
from zoo.errors import NonFiniteError, UserError, check_at_least
from zoo.pictures.decoding import decode_files
from zoo.pictures.preprocessing import Preprocessing


class FilePredictions(NamedTuple):
    """Predictions for consecutive files.

    Attributes:
        paths: the files, those included that cannot be read.
        readable: positions in `paths` of the files that can be read.
        prediction: prediction for these, in their order; None if there are none.
        problems: why others cannot be read, by position in `paths`.
    """

    paths: Sequence[Path]
    readable: list[int]
    prediction: ClassPrediction | None
    problems: dict[int, str]


def predict_files(model: Any, paths: Sequence[Path], batch_size: int = 256) -> Iterator[FilePredictions]:
    """Classifies files of pictures, brought to the model's input as in training; they are decoded on all cores.

        model = zoo.load("runs/resnet/version_0")
        for part in predict_files(model, sorted(Path("photos").glob("*.jpg"))):
            ...

    Args:
        model: classifier from `zoo.load`, or any `zoo.contracts.PredictiveClassifier` with `trained_on`, on its device.
        paths: files.
        batch_size: number of pictures that are predicted at a time.

    Yields:
        Predictions, in the order of the files.

    Raises:
        UserError: the model is no classifier, or does not say how pictures are brought to its input.
    """
    check_at_least(1, batch_size=batch_size)
    preprocessing = preprocessing_of(model)
    device = _device_of(model)
    options = (preprocessing.size, preprocessing.channels, preprocessing.fit, preprocessing.background)
    batches = _in_batches(decode_files(paths, *options), len(paths), batch_size)
    for start, stop, pixels, indices, problems in batches:
        prediction = None
        if indices:
            with torch.no_grad():
                prediction = model.predictive(preprocessing.normalize(pixels.to(device)), torch.tensor(indices))
        readable = [i - start for i in indices]
        yield FilePredictions(paths[start:stop], readable, prediction, {i - start: p for i, p in problems.items()})


class _Batch(NamedTuple):
    """Decoded files from `start` to `stop`: pixels of those at `indices`, and why others cannot be read."""

    start: int
    stop: int
    pixels: Tensor
    indices: list[int]
    problems: dict[int, str]


def _in_batches(
    decoded: Iterable[tuple[Tensor, list[int], dict[int, str]]], count: int, batch_size: int
) -> Iterator[_Batch]:
    """Puts what `decode_files` yields into batches of the same number of pictures; the last one may be smaller."""
    start = 0
    parts: list[Tensor] = []
    indices: list[int] = []
    problems: dict[int, str] = {}

    def cut(stop: int, size: int) -> _Batch:
        pixels = torch.cat(parts) if len(parts) > 1 else parts[0]
        parts[:] = [pixels[size:]]
        batch = _Batch(start, stop, pixels[:size], indices[:size], {i: p for i, p in problems.items() if i < stop})
        del indices[:size]
        for index in batch.problems:
            del problems[index]
        return batch

    for pixels, found, broken in decoded:
        parts.append(pixels)
        indices += found
        problems |= broken
        while len(indices) >= batch_size:
            stop = indices[batch_size - 1] + 1
            yield cut(stop, batch_size)
            start = stop
    if start < count:
        yield cut(count, len(indices))


def preprocessing_of(model: Any) -> Preprocessing:
    """How a classifier's pictures are brought to its input.

    Raises:
        UserError: the model is no classifier of pictures, or does not say it.
    """
    name = type(model).__name__
    if not offers(model, PredictiveClassifier):
        raise UserError(f"{name} is not a classifier: it has no predictive(x, places)")
    shape = tuple(model.input_shape)
    if len(shape) != 3:
        raise UserError(f"the {name} was trained on samples of the shape {shape}, not on pictures")
    known = getattr(model, "trained_on", None)
    if known is None or known.preprocessing is None:
        raise UserError(
            f"the {name} does not know how pictures are brought to its input, since the data it was trained on did not "
            "tell (attribute preprocessing of the data module): set model.trained_on and call zoo.hub.predicting"
        )
    if known.preprocessing.input_shape != shape:
        raise UserError(f"the {name}'s preprocessing makes {known.preprocessing.input_shape}, and it takes {shape}")
    return known.preprocessing


def _device_of(model: Any) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def class_names_of(model: Any) -> list[str]:
    """Names of a classifier's classes; their numbers if the training data had no names.

    The classes are counted by a prediction, so that a mistake is found before any file is read.
    """
    with torch.no_grad():
        black = torch.zeros(1, *model.input_shape, device=_device_of(model))
        probabilities = model.predictive(black).probabilities
    if not probabilities.isfinite().all():
        raise NonFiniteError(
            f"the {type(model).__name__} predicts NaN: its weights are damaged, or training had diverged; take another "
            "checkpoint"
        )
    count = probabilities.shape[1]
    known = getattr(model, "trained_on", None)
    names = None if known is None else known.class_names
    return list(names) if names is not None and len(names) == count else list(map(str, range(count)))


def write_predictions(
    model: Any,
    paths: Sequence[Path],
    table: Path,
    batch_size: int = 256,
    advance: Callable[[int], object] = lambda files: None,
    overwrite: bool = False,
) -> int:
    """Writes the predictions of `predict_files` to a table, one row for each file.

    Columns: `path`, those of `prediction_table.prediction_columns`, and `error`, why a file cannot be read; its other
    columns are empty then. The table appears when it is complete.

    Args:
        model: see `predict_files`.
        paths: files.
        table: file to write, ending in .csv or .parquet.
        batch_size: number of pictures that are predicted at a time.
        advance: called with the number of files that are done since the last call.
        overwrite: replace the table if it exists.

    Returns:
        The number of files that cannot be read.
    """
    preprocessing_of(model)
    names = class_names_of(model)
    broken = 0
    columns = {"path": str, **prediction_columns(names), "error": str}
    with open_table(table, columns, overwrite) as write:
        for part in predict_files(model, paths, batch_size):
            write(_rows(part, names))
            broken += len(part.problems)
            advance(len(part.paths))
    return broken


def _rows(part: FilePredictions, class_names: Sequence[str]) -> dict[str, list[Any]]:
    values = prediction_values(part.prediction, class_names) if part.prediction is not None else {}
    rows: dict[str, list[Any]] = {name: [None] * len(part.paths) for name in values}
    for name, column in values.items():
        for position, value in zip(part.readable, column, strict=True):
            rows[name][position] = value
    errors = [part.problems.get(position) for position in range(len(part.paths))]
    return {"path": [str(path) for path in part.paths], **rows, "error": errors}
