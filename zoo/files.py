"""Writing files: atomically, and without overwriting anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from zoo.errors import UserError

PARTIAL = ".partial"
#: Line between two texts in one file.
TEXT_SEPARATOR = "\n" + "-" * 40 + "\n"


@contextmanager
def atomic_write(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` once it is complete and flushed to disk.

    If the process is killed or the disk is full, the old file stays as it was.

    Args:
        path: target file; its folder must exist.
        mode: mode of `open`, for writing.
        **options: further arguments of `open`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flushes a file, or a folder's entries, to disk, on systems that support it."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `path` whose files stand in `path` once all of them are written.

    If the process is killed or the disk is full, there is no folder `path`, or its files are as they were. In a folder
    that exists, such as a clone of a repository, files of the same names are replaced one by one; others are kept.

    Args:
        path: target folder; its parents are created.
        overwrite: replace files in a folder that is not empty.

    Raises:
        UserError: the folder has files and `overwrite` is false, it is a file, or it cannot be written.
    """
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{path} exists already and is not overwritten; choose another name, or set overwrite=True")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; choose another name for the folder")
    target = path.absolute()  # "." has no name
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        if target.exists():
            for file in partial.iterdir():
                file.replace(target / file.name)
        else:
            partial.replace(target)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync(target.parent)


def remove_partial(folder: Path) -> None:
    """Removes temporary files that a killed process left in the folder."""
    for path in folder.rglob(f".*{PARTIAL}"):
        with suppress(OSError):
            path.unlink()


def refuse_existing(path: Path) -> Path:
    """Returns the path if no file is there.

    Raises:
        UserError: the file exists.
    """
    if path.exists():
        raise UserError(f"{path} exists already and is not overwritten; choose another name")
    return path


def new_file(path: Path) -> Path:
    """Returns the path of a file that does not exist yet, and creates its folder.

    Raises:
        UserError: the file exists.
    """
    refuse_existing(path).parent.mkdir(parents=True, exist_ok=True)
    return path


def unused_path(path: Path) -> Path:
    """Returns the path, with a number appended to its stem if it exists already."""
    number, candidate = 1, path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


def save_texts(path: Path, texts: list[str]) -> None:
    """Writes texts with a separator line between them; if the file exists, to `unused_path(path)`."""
    path = unused_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT_SEPARATOR.join(texts) + "\n", encoding="utf-8")
