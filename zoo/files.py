"""Writing files: atomically, and without overwriting anything unless the user asks for it.

The rule of all commands and callbacks that write a file for the user is `output_path` when they start, and
`write_output` when they write.
"""

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
        path: target file; its folder must exist. A link is replaced, not followed.
        mode: mode of `open`, for writing.
        **options: further arguments of `open`.
    """
    partial = _partial(path)
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


def _partial(path: Path) -> Path:
    """Temporary file of this process that becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


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


def output_path(given: str | Path | None, default: str | Path, overwrite: bool = False) -> Path:
    """Path of a file to write, checked by `check_output`.

    Args:
        given: path that the user gave; None for the default.
        default: default path; without `overwrite` it gets a number if it exists.
        overwrite: whether an existing file is replaced.

    Raises:
        UserError: the given file exists and is not to be replaced, or no file can be written there.
    """
    path = Path(default if given is None else given)
    return check_output(unused_path(path) if given is None and not overwrite else path, overwrite)


def check_output(path: Path, overwrite: bool = False) -> Path:
    """Returns the path if a file can be written there, which is tried: what takes long is not computed in vain.

    Raises:
        UserError: a file exists and is not to be replaced, the path is a folder, a device or below a file, or the
            system refuses to create a file of this name there.
    """
    try:
        _check_free(path, overwrite)
        folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder, so that {path} cannot be written; choose another name")
        trial = _partial(folder / path.name)
        trial.open("wb").close()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another name") from error
    return path


def _check_free(path: Path, overwrite: bool) -> None:
    """Raises a `UserError` unless there is nothing of this name, or a file or a link that is to be replaced."""
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is not a name of a file; choose another one")
    if path.is_dir():
        raise UserError(f"{path} is a folder; choose another name")
    if path.exists() and not path.is_file():  # replacing /dev/null would harm the whole machine
        raise UserError(f"{path} is a device or a pipe; choose the name of a file")
    if os.path.lexists(path) and not overwrite:
        found = "exists already" if path.exists() else f"is a link to {path.readlink()}, which does not exist"
        raise UserError(f"{path} {found}; choose another name, or replace the file with --overwrite")


@contextmanager
def write_output(path: Path, overwrite: bool = False, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Opens a file by `atomic_write`, in a folder that is created if necessary.

    Raises:
        UserError: a file exists and is not to be replaced, the path is a folder, its folder cannot be created, or the
            file cannot be written, such as on a full disk.
    """
    _check_free(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{path.parent} cannot be created as a folder ({error.strerror})"
        raise UserError(f"{reason}; choose another name") from error
    try:
        with atomic_write(path, mode, **options) as file:
            yield file
    except OSError as error:
        if error.filename is not None and Path(error.filename) != _partial(path):
            raise  # about another file, which was read meanwhile
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def unused_path(path: Path) -> Path:
    """Returns the path, with a number appended to its stem if it exists already."""
    number, candidate = 1, path
    while os.path.lexists(candidate):
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


def save_texts(path: Path, texts: list[str], overwrite: bool = False) -> None:
    """Writes texts with a separator line between them."""
    with write_output(path, overwrite, "w", encoding="utf-8") as file:
        file.write(TEXT_SEPARATOR.join(texts) + "\n")
