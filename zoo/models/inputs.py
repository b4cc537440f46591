"""Inputs of a model from whatever a user has: paths, pictures, arrays or tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.errors import UserError
from zoo.pictures.decoding import decoding, describe_error
from zoo.pictures.preprocessing import Preprocessing
from zoo.pictures.threads import map_in_threads

#: A picture: path to a file, PIL image, array (H, W) or (H, W, C), or tensor (C, H, W).
Picture = str | Path | Image.Image | np.ndarray | Tensor


def input_batches(
    samples: Any, input_shape: Sequence[int], preprocessing: Preprocessing | None, batch_size: int
) -> Iterator[Tensor]:
    """Brings samples to a model's input, in batches; files are decoded on all cores.

    Args:
        samples: one sample or a sequence of them. Pictures are paths, PIL images, uint8 arrays (H, W) or (H, W, C), or
            uint8 tensors (C, H, W), of any size. Tensors and arrays of floats (*input_shape) are taken as the model's
            input. Arrays and tensors can have a batch dimension in front.
        input_shape: shape of the model's input.
        preprocessing: how pictures are brought to the model's input; None if it is not known.
        batch_size: largest number of samples in a batch.

    Yields:
        Floats (n, *input_shape).

    Raises:
        UserError: a file is missing or broken, or a sample is of another type or shape.
    """
    shape = tuple(input_shape)
    if (whole := _float_batch(samples, shape)) is not None:
        yield from (_check_input(part, shape) for part in whole.split(batch_size))
        return
    items = iter(_as_sequence(samples, shape))
    while chunk := list(islice(items, batch_size)):
        with decoding():
            batch = list(map_in_threads(lambda item: to_input(item, shape, preprocessing), chunk))
        yield torch.stack(batch)


def to_input(sample: Any, shape: tuple[int, ...], preprocessing: Preprocessing | None) -> Tensor:
    """One sample as the input of a model, floats of this shape; see `input_batches`."""
    if isinstance(sample, (np.ndarray, Tensor)):
        value = torch.as_tensor(sample)
        if value.is_floating_point():
            return _check_input(value.float()[None], shape)[0]
    if len(shape) != 3:
        raise UserError(f"a sample is a {type(sample).__name__}; the model takes arrays of floats of the shape {shape}")
    if preprocessing is None:
        raise UserError(
            "the checkpoint does not say how pictures are brought to the model's input: give float tensors of the "
            f"shape {shape} in [-1, 1], or set model.trained_on"
        )
    if preprocessing.input_shape != shape:
        raise UserError(
            f"the checkpoint's preprocessing makes {preprocessing.input_shape}, and the model takes {shape}"
        )
    return preprocessing.normalize(_read(sample, preprocessing))


def _float_batch(samples: Any, shape: tuple[int, ...]) -> Tensor | None:
    """Samples as one tensor of floats (N, ...), without a copy of each; None if they are something else."""
    if not isinstance(samples, (np.ndarray, Tensor)) or samples.ndim != len(shape) + 1:
        return None
    value = torch.as_tensor(samples)
    return value.float() if value.is_floating_point() and len(value) else None


def _as_sequence(samples: Any, shape: tuple[int, ...]) -> Iterable[Any]:
    if isinstance(samples, (str, Path, Image.Image)):
        return [samples]
    if isinstance(samples, (np.ndarray, Tensor)):
        # A grey picture as an array has no dimension of channels.
        single = samples.ndim == len(shape) or (isinstance(samples, np.ndarray) and samples.ndim == 2 == len(shape) - 1)
        return samples[None] if single else samples
    return samples


def _read(picture: Any, preprocessing: Preprocessing) -> Tensor:
    """A picture as uint8 (C, H, W)."""
    path = Path(picture) if isinstance(picture, (str, Path)) else None
    if path is not None and not path.is_file():
        raise UserError(f"{path} is not a file")
    source = path or picture if isinstance(picture, Image.Image) or path is not None else _to_image(picture)
    try:
        return preprocessing.pixels(source)
    except Exception as error:  # Pillow raises errors of many types on damaged files
        raise UserError(f"{path or 'a picture'} cannot be read: {describe_error(error)}") from error


def _to_image(picture: Any) -> Image.Image:
    """An array or tensor of bytes as a PIL image."""
    if isinstance(picture, Tensor):
        array = picture.permute(1, 2, 0).cpu().numpy() if picture.ndim == 3 else picture.cpu().numpy()
    elif isinstance(picture, np.ndarray):
        array = picture
    else:
        raise UserError(f"a picture is a {type(picture).__name__}; give a path, a PIL image, an array or a tensor")
    if array.dtype != np.uint8:
        raise UserError(
            f"a picture is of {array.dtype}; give uint8 in [0, 255], or floats in [-1, 1] of the model's size"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        kind = "(C, H, W)" if isinstance(picture, Tensor) else "(H, W) or (H, W, C)"
        raise UserError(f"a picture has the shape {tuple(picture.shape)}; it must be {kind} with 1, 3 or 4 channels")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_input(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns floats (N, ...) if they are inputs of a model; raises a `UserError` otherwise."""
    if tuple(value.shape[1:]) != shape:
        raise UserError(
            f"a sample of floats has the shape {tuple(value.shape[1:])}; the model takes {shape} (pictures of another "
            "size are brought to it as uint8)"
        )
    if len(shape) == 3 and (value.min() < -1.01 or value.max() > 1.01):
        low, high = value.min().item(), value.max().item()
        raise UserError(f"a picture of floats is in [{low:.3g}, {high:.3g}]; the model takes [-1, 1], or uint8")
    return value
