"""Files of pictures: in folders and all folders below them, by name, or by a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from zoo.errors import UserError
from zoo.pictures.decoding import endings


def find_pictures(sources: Iterable[str]) -> list[Path]:
    """Finds picture files, sorted by path, each once.

    Args:
        sources: files, which are taken whatever they are; folders, of which all pictures below are taken but for hidden
            ones; and patterns such as "photos/*.jpg" or "**/*.png", which stand for the files and folders they match.

    Raises:
        UserError: a source is missing, matches nothing or cannot be read, or a folder holds no pictures.
    """
    found: dict[str, Path] = {}
    for source in sources:
        try:
            files = [file for path in _expand(source) for file in _files_at(path)]
        except OSError as error:
            raise UserError(f"{error.filename or source} cannot be read: {error.strerror}") from error
        if not files:
            raise UserError(f"{source} has no pictures, in it or below it (of a format that Pillow reads)")
        for file in files:
            found.setdefault(os.path.abspath(file), file)  # noqa: PTH100 - does not follow links
    return sorted(found.values())


def _expand(source: str) -> list[Path]:
    """The file or folder itself, or those that match a pattern."""
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    if not glob.has_magic(source):
        raise UserError(f"{source} does not exist; give a folder of pictures, files, or a pattern in quotes")
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - which takes no absolute patterns
    if not matches:
        raise UserError(f"{source} matches no file; give a folder of pictures, files, or another pattern in quotes")
    return [Path(match) for match in matches]


def _files_at(path: Path) -> list[Path]:
    """A file itself, or the pictures below a folder."""
    return images_below(path) if path.is_dir() else [path]


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and in all folders below it, without hidden ones."""
    return [file for path in walk_folders(folder) for file in image_files(path)]


def walk_folders(folder: Path, parents: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """A folder and all folders below it, sorted by name; links are followed, but not in circles."""
    real = folder.resolve()
    if real in parents:
        return
    yield folder
    for name in subfolders(folder):
        yield from walk_folders(folder / name, parents | {real})


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Sorted files in a folder whose ending is that of an image, without hidden ones."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in endings()]
