"""A folder of images as a data module: read with Pillow, cropped to one size, held in memory as uint8.

Every image is decoded once, in `setup()`, so that broken files are reported before the first step and an epoch costs no
more than one of a benchmark dataset. The layouts are that of torchvision's `ImageFolder`, and a flat folder.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps
from torch import Tensor

from zoo.datamodules.augment import Augment
from zoo.datamodules.base import InMemoryDataModule
from zoo.errors import UserError

# Formats of Pillow that are not images (or only contain one), or that run another program, as EPS does.
NOT_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
LAYOUTS = "put images into it, into <class>/, or into train/<class>/ and test/<class>/"
FILES_PER_TASK = 64  # large enough for a small overhead, small enough that all threads end at the same time


class LabeledFile(NamedTuple):
    """An image file and the index of its class."""

    path: Path
    label: int


class ImageFolder(InMemoryDataModule):
    """A folder of images of any size and format, with one sub-folder per class.

    Layouts, recognized by the names of the folders:

    - `root/<class>/*.jpg`: labels and `class_names` follow the alphabetical order of the sub-folders ("10" comes before
      "9");
    - `root/*.jpg`: a single class, named after the folder;
    - `root/train/` and `root/test/`, each in one of the layouts above, with the same classes; other folders in `root`
      are ignored.

    Without a test folder, `test_size` images are held out as the test split. The choice depends only on the file names,
    not on `seed`, so runs with different seeds have the same test split.

    The largest centered square of each image is resized to `image_size` (bicubic, antialiased). EXIF rotation is
    applied, transparency becomes white, 16-bit values are scaled to 8 bits, and only the first frame of an animation is
    used. Hidden files, folders inside a class, and files whose ending is not that of an image are ignored. Files that
    cannot be decoded are skipped, with one warning per split: broken and truncated files, images of floats (whose range
    is unknown), and images of more than `PIL.Image.MAX_IMAGE_PIXELS`.

    Args:
        root: path to the folder.
        image_size: height and width to which every image is resized, in pixels.
        channels: number of channels: 3 for color, 1 for grey.
        test_size: number of images held out for testing if there is no test folder; a value below 1 is a fraction.
        batch_size: see `InMemoryDataModule`, as for the other arguments.

    Raises:
        UserError: the folder does not exist or has no known layout; from `setup()`, a class has no readable image.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        channels: Literal[1, 3] = 3,
        test_size: float = 0.1,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 0.1,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, repeats, drop_last, seed, augment)
        if image_size < 1:
            raise UserError(f"image_size is {image_size}; it must be at least 1 pixel")
        if channels not in (1, 3):
            raise UserError(f"channels is {channels}; it must be 1 (grey) or 3 (color)")
        if test_size <= 0:
            raise UserError(f"test_size is {test_size}; give a number of images, or a fraction between 0 and 1")
        self.root = root
        self.test_size = test_size
        self.input_shape = (channels, image_size, image_size)
        self._find_classes()
        self.num_classes = len(self.class_names)

    def _find_classes(self) -> None:
        """Finds the folders of the splits and the class names, without opening an image."""
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder.absolute()} {what}; point root to a folder of images")
        self._train_folder, self._test_folder = folder, None
        if {"train", "test"} <= set(_subfolders(folder)):
            self._train_folder, self._test_folder = folder / "train", folder / "test"

        names = _subfolders(self._train_folder)
        self._flat = not names
        self.class_names: Sequence[str] = tuple(names) if names else (folder.resolve().name,)
        if names and _image_files(self._train_folder):
            raise UserError(
                f"{self._train_folder.absolute()} holds both images and folders; "
                "move the images into folders of their classes, or move the folders elsewhere"
            )
        if self._test_folder and (others := set(_subfolders(self._test_folder)) ^ set(names)):
            raise UserError(
                f"{self._train_folder.absolute()} and {self._test_folder.absolute()} have different classes; "
                f"only one of them has {_list_some(sorted(others))}"
            )

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        held_out = self._test_folder is None
        folder = self._train_folder if train or self._test_folder is None else self._test_folder
        files = self._list(folder)
        if held_out:
            files = self._hold_out(files, train)
        x, y = self._read(files)
        # A held-out test split may have no image of a small class; all other splits must have one of every class.
        for label in set() if held_out and not train else set(range(self.num_classes)) - set(y.tolist()):
            raise UserError(
                f"{self._class_folder(folder, label).absolute()} has no readable image for the "
                f"{'training' if train else 'test'} split; add some, or remove the folder"
            )
        return x, y

    def _class_folder(self, folder: Path, label: int) -> Path:
        return folder if self._flat else folder / self.class_names[label]

    def _list(self, folder: Path) -> list[LabeledFile]:
        """Image files of a split, recognized by their endings, sorted by class and name.

        Raises:
            UserError: a class has no images.
        """
        found = []
        for label in range(self.num_classes):
            class_folder = self._class_folder(folder, label)
            paths = _image_files(class_folder)
            if not paths:
                raise UserError(f"{class_folder.absolute()} has no images; {LAYOUTS} below root")
            found += [LabeledFile(path, label) for path in paths]
        return found

    def _hold_out(self, files: list[LabeledFile], train: bool) -> list[LabeledFile]:
        """Files that are not held out for testing (`train`), or those that are."""
        total = len(files)
        count = round(self.test_size * total) if self.test_size < 1 else int(self.test_size)
        if not 0 < count < total:
            raise UserError(
                f"test_size {self.test_size} holds out {count} of {total} images in {self._train_folder.absolute()}; "
                "both splits need at least one image"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(1998)).tolist()
        return [files[i] for i in sorted(order[count:] if train else order[:count])]

    def _read(self, files: list[LabeledFile]) -> tuple[Tensor, Tensor]:
        """Decodes all readable files, in order, to images, uint8 (N, *input_shape), and labels, int64 (N,)."""
        x = torch.empty(len(files), *self.input_shape, dtype=torch.uint8)
        problems = decode_into(x, [file.path for file in files])
        y = torch.tensor([file.label for file in files])
        if problems:
            first = _list_some([f"{files[i].path} ({problem})" for i, problem in problems.items()])
            if len(problems) == len(files):
                raise UserError(f"none of the {len(files)} images in {self.root} can be read: {first}")
            rank_zero_warn(f"{len(problems)} of {len(files)} images cannot be read and are skipped: {first}")
            keep = torch.ones(len(files), dtype=torch.bool)
            keep[list(problems)] = False
            x, y = x[keep], y[keep]
        return x, y


def decode_into(out: Tensor, paths: Sequence[Path]) -> dict[int, str]:
    """Decodes one image file into each row of `out`, on all processor cores.

    Args:
        out: images, uint8 (N, C, size, size), filled in place; C is 1 (grey) or 3 (color).
        paths: paths of the N files.

    Returns:
        Reason of each failure by index, ascending; these rows of `out` are undefined.
    """
    _, channels, size, _ = out.shape
    rows = out.permute(0, 2, 3, 1).numpy()  # (N, H, W, C), a view
    _formats()  # loads Pillow's plugins, which is not thread-safe

    def decode(start: int) -> dict[int, str]:
        problems = {}
        for i in range(start, min(start + FILES_PER_TASK, len(paths))):
            try:
                rows[i] = decode_image(paths[i], size, channels)
            except Exception as error:  # Pillow raises errors of many types on damaged files
                problems[i] = _describe_error(error)
        return problems

    threads = min(os.cpu_count() or 1, 16)  # limited, because each holds a decoded image of any size
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # about metadata, one per file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        parts = pool.map(decode, range(0, len(paths), FILES_PER_TASK))
        return {i: problem for part in parts for i, problem in part.items()}


def decode_image(path: Path, size: int, channels: int) -> np.ndarray:
    """Reads the centered square of an image, resized.

    Args:
        path: path of the file.
        size: height and width of the result, in pixels.
        channels: 1 for grey, 3 for color.

    Returns:
        uint8 (size, size, channels).

    Raises:
        Exception: an error of any type: the file is broken, or its format or range of values is not supported.
    """
    with Image.open(path, formats=_formats()) as image:
        # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the cost; at twice the final size,
        # antialiasing is still done by the resizing below. No effect on other formats.
        image.draft(None, (2 * size, 2 * size))
        ImageOps.exif_transpose(image, in_place=True)
        opaque = _to_mode(image, "L" if channels == 1 else "RGB")
    square = ImageOps.fit(opaque, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, channels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image of any of Pillow's modes to 8 bits, "L" (grey) or "RGB" (color), on a white background."""
    if image.mode.startswith("I"):  # mode "I" has 32 bits, but Pillow uses it for 16-bit PGM and PNG
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers of more than 16 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("pixels are floats, of unknown range")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


@cache
def _formats() -> tuple[str, ...]:
    """Image formats that Pillow can open, with its installed plugins."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_IMAGES)


@cache
def _endings() -> frozenset[str]:
    formats = set(_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in _endings()]


def _list_some(items: Iterable[str], limit: int = 3) -> str:
    """The first items in words, and the number of the others."""
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _describe_error(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"  # Pillow's message repeats the path
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    return str(error).strip().split("\n")[0] or type(error).__name__
