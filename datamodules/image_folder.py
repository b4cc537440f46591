"""A folder of images as a data module: read with Pillow, brought to one size, held in memory or on disk as uint8.

Every image is decoded once, before training, so that broken files are reported before the first step and an epoch costs
no more than one of a benchmark dataset. The layouts are that of torchvision's `ImageFolder`, nested or not, and a flat
folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

import PIL
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.datamodules.augment import Augment, BatchTransform
from zoo.datamodules.base import InMemoryDataModule
from zoo.datamodules.device_cache import CacheMode
from zoo.datamodules.sources import Chunk, SplitSource, files_digest, list_some
from zoo.errors import UserError, check_at_least, check_at_most, check_choice
from zoo.pictures.decoding import Fit, check_fit, decode_files, measure_sizes, parse_color
from zoo.pictures.files import image_files, subfolders, walk_folders
from zoo.pictures.preprocessing import LARGEST_SIDE

Classes = Literal["first", "path"]

LAYOUTS = "put images into it, into <class>/, or into train/<class>/ and test/<class>/"
SPLIT_FOLDERS = {"train", "test", "val", "valid", "validation"}
LEAST_SIZE, LARGEST_SIZE = 8, 64  # pixels; sizes that are chosen by the data
UNKNOWN_SIZE = 32  # pixels; no file can be read, which setup() reports


class LabeledFile(NamedTuple):
    """An image file and the index of its class."""

    path: Path
    label: int


class ImageFolder(InMemoryDataModule):
    """A folder of images of any size and format, with one sub-folder per class.

    Layouts, recognized by the names of the folders:

    - `root/<class>/**/*.jpg`: labels and `class_names` follow the alphabetical order of the classes ("10" comes before
      "9"); `classes` says which level of folders is the class;
    - `root/*.jpg`: a single class, named after the folder;
    - `root/train/` and `root/test/`, each in one of the layouts above, with the same classes; other folders in `root`
      are ignored.

    Without a test folder, `test_size` images are held out as the test split. The choice depends only on the file names,
    not on `seed`, so runs with different seeds have the same test split.

    EXIF rotation is applied, transparency becomes `background`, 16-bit values are scaled to 8 bits, and only the first
    frame of an animation is used. Hidden files and folders, and files whose ending is not that of an image, are
    ignored. Files that cannot be decoded are skipped, with one warning per split: broken and truncated files, images of
    floats (whose range is unknown), and images of more than `PIL.Image.MAX_IMAGE_PIXELS`.

    Args:
        root: path to the folder.
        image_size: height and width to which every image is resized, in pixels. None chooses them by the data: the
            median of the shorter sides, rounded down to a multiple of 4 (of 8 from 32 on), at least 8 and at most 64.
        channels: number of channels: 3 for color, 1 for grey.
        fit: how an image becomes a square: "crop" takes the largest centered square, "pad" adds borders of the
            background, "stretch" changes the aspect ratio. Resizing is bicubic and antialiased.
        background: color below transparent pixels and of borders: a name such as "white", or "#rrggbb".
        classes: what the class of an image is: "first", the first level of folders; "path", the whole path of its
            folder, such as "Greek/alpha".
        test_size: number of images held out for testing if there is no test folder; a value below 1 is a fraction.
        batch_size: see `InMemoryDataModule`, as for the other arguments.

    Raises:
        UserError: the folder does not exist or has no known layout; from `setup()`, a class has no readable image.
    """

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        channels: Literal[1, 3] = 3,
        fit: Fit = "crop",
        background: str = "white",
        classes: Classes = "first",
        test_size: float = 0.1,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_size: float = 0.1,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        augment: Augment | BatchTransform | None = None,
        cache: CacheMode = "auto",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, val_size, repeats, drop_last, seed, augment, cache=cache, cache_dir=cache_dir
        )
        check_at_least(1, image_size=image_size)
        check_at_most(LARGEST_SIDE, image_size=image_size)
        if channels not in (1, 3):
            raise UserError(f"channels is {channels}; it must be 1 (grey) or 3 (color)")
        if not 0 < test_size < math.inf:
            raise UserError(f"test_size is {test_size}; give a number of images, or a fraction between 0 and 1")
        check_fit(fit)
        check_choice("classes", classes, get_args(Classes))
        parse_color(background)
        self.root = root
        self.test_size = test_size
        self.fit = fit
        self.background = background
        self.classes = classes
        try:
            self._find_files()
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
        self.num_classes = len(self.class_names)
        files = [file.path for found in self._files.values() for file in found]
        self._sizes = measure_sizes(files)
        size = choose_size(self._sizes) if image_size is None else image_size
        self.input_shape = (channels, size, size)
        self._unreadable: dict[bool, set[int]] = {True: set(), False: set()}  # indices, known from setup() on
        self._described = False

    # Finding the files

    def _find_files(self) -> None:
        """Finds classes and files of the splits by their names, without opening an image."""
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder.absolute()} {what}; point root to a folder of images")
        folders = set(subfolders(folder))
        if folders and folders <= SPLIT_FOLDERS and not {"train", "test"} <= folders:
            raise UserError(
                f"{folder.absolute()} has {list_some(sorted(folders))}, but not both train and test; "
                f"{LAYOUTS} below root"
            )
        split = {"train", "test"} <= folders
        train = self._find_classes(folder / "train" if split else folder)
        self.class_names: Sequence[str] = tuple(train)
        self._files = {True: _labeled(train)}
        if split:
            test = self._find_classes(folder / "test")
            if others := set(test) ^ set(train):
                raise UserError(
                    f"{(folder / 'train').absolute()} and {(folder / 'test').absolute()} have different classes; "
                    f"only one of them has {list_some(sorted(others))}"
                )
            self._files[False] = _labeled(test)

    def _find_classes(self, folder: Path) -> dict[str, list[Path]]:
        """Image files of a split by class, sorted by class and path.

        Raises:
            UserError: there is no image, a class has none, or images lie beside the folders of classes.
        """
        here, names = image_files(folder), subfolders(folder)
        if here and names:
            raise UserError(
                f"{folder.absolute()} holds both images and folders; "
                "move the images into folders of their classes, or move the folders elsewhere"
            )
        if not names:
            found = {Path(self.root).expanduser().resolve().name: here}
        elif self.classes == "path":
            found = {}
            for path in walk_folders(folder):
                if files := image_files(path):
                    found[path.relative_to(folder).as_posix()] = files
            found = dict(sorted(found.items()))
        else:
            found = {
                name: [file for path in walk_folders(folder / name) for file in image_files(path)] for name in names
            }
        for name in [name for name, files in found.items() if not files] if found else [""]:
            empty = folder / name if names else folder
            raise UserError(f"{empty.absolute()} has no images; {LAYOUTS} below root")
        return found

    def _split_files(self, train: bool) -> list[LabeledFile]:
        """Files of the training split, validation included, or of the test split."""
        if False in self._files:
            return self._files[train]
        files = self._files[True]
        total = len(files)
        count = round(self.test_size * total) if self.test_size < 1 else int(self.test_size)
        if not 0 < count < total:
            raise UserError(
                f"test_size {self.test_size} holds out {count} of {total} images in {Path(self.root).absolute()}; "
                "both splits need at least one image"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(1998)).tolist()
        return [files[i] for i in sorted(order[count:] if train else order[:count])]

    # Reading them

    def split_source(self, train: bool) -> SplitSource:
        files = self._split_files(train)
        channels, *size = self.input_shape
        color = parse_color(self.background)

        def chunks() -> Iterator[Chunk]:
            for x, indices, problems in decode_files([f.path for f in files], size, channels, self.fit, color):
                y = torch.tensor([files[i].label for i in indices], dtype=torch.int64)
                yield Chunk(x, y, {i: f"{files[i].path} ({problem})" for i, problem in problems.items()})

        def content() -> Mapping[str, Any]:
            root = Path(self.root).expanduser()
            return {
                "class": type(self).__name__,
                "root": str(root.resolve()),
                "files": files_digest([file.path for file in files], root),
                "class_names": list(self.class_names),
                "classes": self.classes,
                "fit": self.fit,
                "background": color,
                "pillow": PIL.__version__,  # versions can decode and resize differently
            }

        name = self.split_name(train)
        return SplitSource(name, self.input_shape, len(files), content, chunks, self._unreadable[train])

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        return self.split_source(train).read()

    def check_split(self, train: bool, x: Tensor, y: Tensor) -> None:
        super().check_split(train, x, y)
        # A held-out test split may have no image of a small class; all other splits must have one of every class.
        held_out = False not in self._files
        missing = set() if held_out and not train else set(range(self.num_classes)) - set(y.unique().tolist())
        for label in sorted(missing):
            first = next(file.path for file in self._files[train] if file.label == label)
            raise UserError(
                f"{first.parent.absolute()} has no readable image for the {'training' if train else 'test'} split; "
                "add some, or remove the folder"
            )

    def paths(self, name: str) -> list[Path]:
        """Files of the samples of the split "train", "val" or "test", in their order, after `setup()`."""
        train, index = name != "test", self._splits[name].index
        files = [f.path for i, f in enumerate(self._split_files(train)) if i not in self._unreadable[train]]
        return files if index is None else [files[i] for i in index.tolist()]

    def setup(self, stage: str | None = None) -> None:
        if not self._described:
            rank_zero_info(self.describe())
            self._described = True
        super().setup(stage)

    def describe(self) -> str:
        """One line: the pictures that are found, and what is done with them."""
        channels, height, width = self.input_shape
        total = sum(map(len, self._files.values()))
        classes = f"{self.num_classes:,} {'class' if self.num_classes == 1 else 'classes'}"
        fitted = {"crop": "centered squares", "pad": f"{self.background} borders", "stretch": "stretched"}[self.fit]
        images = f"{total:,} image{'' if total == 1 else 's'}"
        return (
            f"{type(self).__name__}: {images} {_describe_sizes(self._sizes)} in {classes} "
            f"(classes: {self.classes}); {fitted} (fit: {self.fit}) to {height}x{width} pixels (image_size), "
            f"{'grey' if channels == 1 else 'color'} (channels: {channels}), {self.background} below transparency "
            "(background)"
        )


def choose_size(sizes: Sequence[tuple[int, int]]) -> int:
    """Side of the square for pictures of these widths and heights, in pixels.

    The median of the shorter sides, rounded down to a multiple of 4, from 32 on of 8, so that networks can halve it two
    or three times; at least 8 and at most 64, which a laptop can train on.
    """
    if not sizes:
        return UNKNOWN_SIZE
    side = int(median(map(min, sizes)))
    step = 8 if side >= 32 else 4
    return min(max(side // step * step, LEAST_SIZE), LARGEST_SIZE)


def _describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "of unknown size"
    if len(set(sizes)) == 1:
        return f"of {sizes[0][0]}x{sizes[0][1]} pixels"
    sides = sorted(map(min, sizes))
    return f"with shorter sides of {sides[0]} to {sides[-1]} pixels"


def _labeled(classes: Mapping[str, Sequence[Path]]) -> list[LabeledFile]:
    return [LabeledFile(path, label) for label, files in enumerate(classes.values()) for path in files]
