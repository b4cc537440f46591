"""Files that are whole or not there at all: a kill or a full disk while they are written leaves the old one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.errors import UserError

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Opens a file that takes the place of `path` when all is written, and on the disk.

    Args:
        path: the file, in a folder that is there.
        mode: for writing.
        **options: of `open`.
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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name of a file is on the disk, too; where the system cannot say so of folders, it is left to it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of torch, each of which replaces the one before it only when it is whole.

    Lightning's own passes through a temporary file elsewhere, which on another disk is copied and not moved.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: there is no room for it, or it may not be written there.
        """
        if "://" in str(path):  # a store on the network, which has ways of its own
            return super().save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        failure: list[OSError] = []
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                torch.save(checkpoint, _Noting(file.write, file.flush, failure))  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            cause = failure[0] if failure else error
            if not isinstance(cause, OSError):
                raise
            raise UserError(
                f"the checkpoint {target} cannot be written: {cause.strerror}; what was there before is whole: "
                "put that right, and go on with --ckpt_path last"
            ) from error
        return None


class _Noting:
    """A file for torch.save, whose own complaint does not say what went wrong."""

    def __init__(self, write: Callable[[Any], int], flush: Callable[[], None], failure: list[OSError]) -> None:
        self._write, self.flush, self._failure = write, flush, failure

    def write(self, data: Any) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self._failure.append(error)
            raise
