"""A folder of one's own pictures as a data module: read with Pillow, cropped to one size, held in memory as bytes.

Every picture is decoded once, in `setup()`, so that a broken file is known before the first step and an epoch costs
what one of the benchmark datasets costs. The layouts are those of torchvision's `ImageFolder`, and a flat folder.
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

# Pillow opens these too, but they are no pictures (or only hold one), or, as EPS, are programs that another runs.
NOT_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
LAYOUTS = "pictures belong in it, in <class>/, or in train/<class>/ and test/<class>/"
FILES_PER_TASK = 64  # enough that handing out the work costs nothing, few enough that all threads end together


class LabeledFile(NamedTuple):
    """A file and the index of its class."""

    path: Path
    label: int


class ImageFolder(InMemoryDataModule):
    """A folder of pictures of any sizes and formats, one class for each sub-folder.

    The layouts, recognized by the folders' names:

    - `root/<class>/*.jpg`: labels and `class_names` follow the sorted names of the sub-folders (as text: "10" stands
      before "9");
    - `root/*.jpg`: one class, named like the folder;
    - `root/train/` and `root/test/`, each in one of the layouts above and both with the same classes; other folders
      beside these two are left alone.

    Without a test folder, `test_size` pictures are the test split. That draw depends on the file names only, not on
    `seed`: runs with several seeds are tested on the same pictures, and none is ever trained on.

    The largest centred square of each picture is resized to `image_size` (bicubic, antialiased). EXIF rotation is
    applied, transparency is laid on white, 16-bit values are scaled to 8 bits, and of an animation the first frame is
    taken. Hidden files, folders inside a class, and files whose ending is not a picture's are ignored. What cannot be
    decoded is left out, with one warning for the training split and one for the test split: broken and truncated
    files, files of floats (whose range nobody can know), and pictures of more than `PIL.Image.MAX_IMAGE_PIXELS`.

    Args:
        root: the folder.
        image_size: height and width that every picture is brought to, in pixels.
        channels: 3 for colour, 1 for grey.
        test_size: pictures held out for testing where there is no test folder; a number below 1 is a share of all.
        batch_size: see `InMemoryDataModule`, as for the other arguments.

    Raises:
        UserError: where the folder is missing or follows no layout; from `setup()`, where a class has no readable
            picture.
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
            raise UserError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        if test_size <= 0:
            raise UserError(f"test_size is {test_size}; give a number of pictures, or a share between 0 and 1")
        self.root = root
        self.test_size = test_size
        self.input_shape = (channels, image_size, image_size)
        self._find_classes()
        self.num_classes = len(self.class_names)

    def _find_classes(self) -> None:
        """Sets the folders of the splits, the class names and whether the classes have folders; opens no picture."""
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder.absolute()} {what}; point root to a folder of pictures")
        self._train_folder, self._test_folder = folder, None
        if {"train", "test"} <= set(_subfolders(folder)):
            self._train_folder, self._test_folder = folder / "train", folder / "test"

        names = _subfolders(self._train_folder)
        self._flat = not names
        self.class_names: Sequence[str] = tuple(names) if names else (folder.resolve().name,)
        if names and _pictures(self._train_folder):
            raise UserError(
                f"{self._train_folder.absolute()} holds both pictures and folders; "
                "move the pictures into a folder of their class, or the folders elsewhere"
            )
        if self._test_folder and (others := set(_subfolders(self._test_folder)) ^ set(names)):
            raise UserError(
                f"{self._train_folder.absolute()} and {self._test_folder.absolute()} differ in their classes; "
                f"only one of the two has {_some(sorted(others))}"
            )

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        held_out = self._test_folder is None
        folder = self._train_folder if train or self._test_folder is None else self._test_folder
        pictures = self._list(folder)
        if held_out:
            pictures = self._hold_out(pictures, train)
        x, y = self._read(pictures)
        # A small class may well have no picture in a held-out test split: it was never promised one.
        for label in set() if held_out and not train else set(range(self.num_classes)) - set(y.tolist()):
            raise UserError(
                f"{self._class_folder(folder, label).absolute()} has no readable picture for the "
                f"{'training' if train else 'test'} split; add some, or remove the folder"
            )
        return x, y

    def _class_folder(self, folder: Path, label: int) -> Path:
        return folder if self._flat else folder / self.class_names[label]

    def _list(self, folder: Path) -> list[LabeledFile]:
        """The picture files under `folder` (by their endings), sorted by class and name.

        Raises:
            UserError: where a class has none.
        """
        found = []
        for label in range(self.num_classes):
            class_folder = self._class_folder(folder, label)
            paths = _pictures(class_folder)
            if not paths:
                raise UserError(f"{class_folder.absolute()} has no pictures; {LAYOUTS} below root")
            found += [LabeledFile(path, label) for path in paths]
        return found

    def _hold_out(self, pictures: list[LabeledFile], train: bool) -> list[LabeledFile]:
        total = len(pictures)
        count = round(self.test_size * total) if self.test_size < 1 else int(self.test_size)
        if not 0 < count < total:
            raise UserError(
                f"test_size {self.test_size} takes {count} of the {total} pictures in {self._train_folder.absolute()}; "
                "at least one must be left on either side"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(1998)).tolist()
        return [pictures[i] for i in sorted(order[count:] if train else order[:count])]

    def _read(self, pictures: list[LabeledFile]) -> tuple[Tensor, Tensor]:
        """Decodes the pictures that can be: uint8 (N, *input_shape) in the order of the list, labels int64 (N,)."""
        x = torch.empty(len(pictures), *self.input_shape, dtype=torch.uint8)
        problems = decode_into(x, [picture.path for picture in pictures])
        y = torch.tensor([picture.label for picture in pictures])
        if problems:
            first = _some([f"{pictures[i].path} ({problem})" for i, problem in problems.items()])
            if len(problems) == len(pictures):
                raise UserError(f"none of the {len(pictures)} pictures in {self.root} can be read: {first}")
            rank_zero_warn(f"{len(problems)} of {len(pictures)} pictures cannot be read and are left out: {first}")
            keep = torch.ones(len(pictures), dtype=torch.bool)
            keep[list(problems)] = False
            x, y = x[keep], y[keep]
        return x, y


def decode_into(out: Tensor, paths: Sequence[Path]) -> dict[int, str]:
    """Decodes one picture into each row of `out`, on all processor cores.

    Args:
        out: uint8 (N, C, size, size), filled in place; C is 1 (grey) or 3 (colour).
        paths: the N files.

    Returns:
        What went wrong, in a few words, by index in ascending order; those rows of `out` hold nothing of use.
    """
    _, channels, size, _ = out.shape
    rows = out.permute(0, 2, 3, 1).numpy()  # (N, H, W, C), a view
    _formats()  # loads Pillow's plugins, which threads must not do at once

    def decode(start: int) -> dict[int, str]:
        problems = {}
        for i in range(start, min(start + FILES_PER_TASK, len(paths))):
            try:
                rows[i] = decode_picture(paths[i], size, channels)
            except Exception as error:  # Pillow's readers raise nearly everything on damaged files
                problems[i] = _in_short(error)
        return problems

    threads = min(os.cpu_count() or 1, 16)  # each holds a decoded picture of any size
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # remarks on metadata, one a file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        parts = pool.map(decode, range(0, len(paths), FILES_PER_TASK))
        return {i: problem for part in parts for i, problem in part.items()}


def decode_picture(path: Path, size: int, channels: int) -> np.ndarray:
    """The centred square of a picture, resized: uint8 (size, size, channels).

    Raises:
        Exception: of many kinds, where the file is broken, of an unknown format or of unbounded values.
    """
    with Image.open(path, formats=_formats()) as image:
        # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size at a fraction of the cost; twice the size that is needed
        # leaves the antialiasing to the resizing below. Has no effect on other formats.
        image.draft(None, (2 * size, 2 * size))
        ImageOps.exif_transpose(image, in_place=True)
        opaque = _to_mode(image, "L" if channels == 1 else "RGB")
    square = ImageOps.fit(opaque, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, channels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Brings any of Pillow's modes to 8 bits, grey ("L") or colour ("RGB"), on a white background."""
    if image.mode.startswith("I"):  # 16 bits; "I" has room for 32, but that is how Pillow opens 16-bit PGM and PNG
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
    """The names of the picture formats that Pillow, with the plugins that are installed, can open."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_PICTURES)


@cache
def _endings() -> frozenset[str]:
    formats = set(_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in _endings()]


def _some(items: Iterable[str], limit: int = 3) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _in_short(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture"  # Pillow's text repeats the whole path
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    return str(error).strip().split("\n")[0] or type(error).__name__
