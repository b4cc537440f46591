"""Pictures of any format and size, decoded and brought to one size with Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from zoo.errors import UserError, check_choice
from zoo.pictures.threads import map_in_threads

Fit = Literal["crop", "pad", "stretch"]
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
# Formats of Pillow that are not images (or only contain one), or that run another program, as EPS does.
NOT_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
FILES_PER_TASK = 64  # large enough for a small overhead, small enough that all threads end at the same time
MEASURED = 256  # files whose headers are read to learn the usual size


def parse_color(name: str) -> Color:
    """Red, green and blue, 0 to 255, of a color: a name of HTML, "#rrggbb" or "rgb(r, g, b)".

    Raises:
        UserError: the color is unknown.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"background is {name!r}; it must be a color: a name such as white, black or grey, or '#rrggbb'"
        ) from error


def check_fit(fit: str) -> None:
    """Raises a `UserError` unless `fit` is one of "crop", "pad" and "stretch"."""
    check_choice("fit", fit, get_args(Fit))


def decode_files(
    paths: Sequence[Path], size: Sequence[int], channels: int, fit: Fit = "crop", background: Color = WHITE
) -> Iterator[tuple[Tensor, list[int], dict[int, str]]]:
    """Decodes image files, in order, on all cores.

    Args:
        paths: paths of the files.
        size: height and width of the results, in pixels.
        channels: 1 for grey, 3 for color.
        fit: see `prepare_image`.
        background: color below transparent pixels.

    Yields:
        Images of some files, uint8 (n, C, H, W); the indices of these files; and, by index, why others cannot be read.
    """

    def decode(start: int) -> tuple[Tensor, list[int], dict[int, str]]:
        images, indices, problems = [], [], {}
        for i in range(start, min(start + FILES_PER_TASK, len(paths))):
            try:
                images.append(decode_image(paths[i], size, channels, fit, background))
                indices.append(i)
            except Exception as error:  # Pillow raises errors of many types on damaged files
                problems[i] = describe_error(error)
        rows = np.stack(images) if images else np.empty((0, *size, channels), np.uint8)
        return torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous(), indices, problems

    with decoding():
        yield from map_in_threads(decode, range(0, len(paths), FILES_PER_TASK))


@contextmanager
def decoding() -> Iterator[None]:
    """Prepares Pillow for decoding in several threads: its plugins are loaded, and too large images are errors."""
    formats()  # loads the plugins, which is not thread-safe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, one per file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(
    path: Path, size: Sequence[int], channels: int, fit: Fit = "crop", background: Color = WHITE
) -> np.ndarray:
    """Reads an image file, see `prepare_image`.

    Raises:
        Exception: an error of any type: the file is broken, or its format or range of values is not supported.
    """
    with open_image(path) as image:
        # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the cost; at twice the final size,
        # antialiasing is still done by the resizing. No effect on other formats.
        side = 2 * max(size)
        image.draft(None, (side, side))
        return prepare_image(image, size, channels, fit, background)


def open_image(path: Path) -> Image.Image:
    """Opens an image file, of a format in `formats`, without decoding it."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise OSError("a folder, a pipe or a device")
    return Image.open(path, formats=formats())


def prepare_image(
    image: Image.Image, size: Sequence[int], channels: int, fit: Fit = "crop", background: Color = WHITE
) -> np.ndarray:
    """Brings a picture to the input of a model: rotation by EXIF, mode, background, size.

    Args:
        image: picture of any size and mode.
        size: height and width of the result, in pixels.
        channels: 1 for grey, 3 for color.
        fit: "crop" resizes the largest centered part of the result's aspect ratio; "pad" resizes the whole picture and
            adds borders of the background; "stretch" changes the aspect ratio. All are bicubic and antialiased.
        background: color below transparent pixels, and of the borders.

    Returns:
        uint8 (H, W, channels).

    Raises:
        ValueError: the pixels are floats, or integers of more than 16 bits.
    """
    opaque = flatten_image(image, channels, background)
    width_height = (size[1], size[0])
    if fit == "stretch":
        fitted = opaque.resize(width_height, Image.Resampling.BICUBIC)
    elif fit == "pad":
        border = Image.new("RGB", (1, 1), background).convert(opaque.mode).getpixel((0, 0))
        fitted = ImageOps.pad(opaque, width_height, Image.Resampling.BICUBIC, color=border)  # type: ignore[arg-type]
    else:
        fitted = ImageOps.fit(opaque, width_height, Image.Resampling.BICUBIC)
    return np.array(fitted).reshape(*size, channels)


def flatten_image(image: Image.Image, channels: int, background: Color = WHITE) -> Image.Image:
    """Rotates an image of any of Pillow's modes by EXIF, and converts it to 8 bits, grey or color, on a background."""
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith("I"):  # mode "I" has 32 bits, but Pillow uses it for 16-bit PGM and PNG
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers of more than 16 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("pixels are floats, of unknown range")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("L" if channels == 1 else "RGB")


def measure_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Width and height of up to `MEASURED` evenly spaced files, from their headers; unreadable files are left out."""
    step = max(1, -(-len(paths) // MEASURED))
    return list(filter(None, map(_size, paths[::step])))


def _size(path: Path) -> tuple[int, int] | None:
    with warnings.catch_warnings(), suppress(Exception):  # Pillow raises errors of many types on damaged files
        warnings.simplefilter("ignore")
        with open_image(path) as image:
            return image.size
    return None


@cache
def formats() -> tuple[str, ...]:
    """Image formats that Pillow can open, with its installed plugins."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_IMAGES)


@cache
def endings() -> frozenset[str]:
    """Endings of the names of image files, such as ".png"."""
    known = set(formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, in words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"  # Pillow's message repeats the path
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().split("\n")[0] or type(error).__name__
