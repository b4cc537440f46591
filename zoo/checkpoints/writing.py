"""Atomic writing of checkpoints, as a plugin of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.errors import UserError
from zoo.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder, flushes it to disk and renames it.

    A killed process or a full disk leaves the previous checkpoint as it was. Lightning's own `TorchCheckpointIO` writes
    to the system's temporary folder, which on another disk is copied and not renamed.

    Example:
        >>> Trainer(plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: the disk is full, or the folder is not writable.
        """
        if "://" in str(path):  # remote storage has its own way of replacing files
            return super().save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        failure: list[OSError] = []
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                torch.save(checkpoint, _ErrorRecorder(file.write, file.flush, failure))  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            cause = failure[0] if failure else error
            if not isinstance(cause, OSError):
                raise
            raise UserError(
                f"the checkpoint {target} cannot be written: {cause.strerror}; the previous one is intact: "
                "fix the cause and resume with --ckpt_path last"
            ) from error
        return None


class _ErrorRecorder:
    """File for torch.save that keeps the OSError, which torch's own message omits."""

    def __init__(self, write: Callable[[Any], int], flush: Callable[[], None], failure: list[OSError]) -> None:
        self._write, self.flush, self._failure = write, flush, failure

    def write(self, data: Any) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self._failure.append(error)
            raise
