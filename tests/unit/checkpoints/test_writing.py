"""Atomic writing of checkpoints."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.checkpoints.writing import AtomicCheckpointIO
from zoo.errors import UserError


class FullDisk:
    """A file that fails after some bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture
def full_disk(monkeypatch):
    """Lets every file that is opened for writing fail after 1,000 bytes."""
    opened = Path.open

    def open_small(self, mode="r", *args, **options):
        file = opened(self, mode, *args, **options)
        if "w" not in mode:
            return file
        return FullDiskContext(file)

    class FullDiskContext:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return FullDisk(self.file.__enter__(), 1000)

        def __exit__(self, *error):
            return self.file.__exit__(*error)

    monkeypatch.setattr(Path, "open", open_small)


def test_a_checkpoint_is_written_and_read_back_with_its_folder(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.arange(3)}, path)
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_how_to_resume(tmp_path, full_disk):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"previous")
    with pytest.raises(UserError) as error:
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(10_000)}, path)
    assert str(error.value) == (
        f"the checkpoint {path} cannot be written: No space left on device; the previous one is intact: "
        "fix the cause and resume with --ckpt_path last"
    )
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_pickled_is_not_an_error_of_the_disk(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises((AttributeError, TypeError, RuntimeError)) as error:
        AtomicCheckpointIO().save_checkpoint({"a": lambda: None}, path)
    assert not isinstance(error.value, UserError)
    assert not list(tmp_path.iterdir())


def test_remote_storage_is_left_to_lightning(monkeypatch):
    saved = []
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda self, *args: saved.append(args))
    AtomicCheckpointIO().save_checkpoint({"a": 1}, "memory://bucket/last.ckpt")
    assert saved == [({"a": 1}, "memory://bucket/last.ckpt", None)]


def test_a_trainer_with_the_plugin_writes_through_it(tmp_path, monkeypatch):
    written = []
    save = AtomicCheckpointIO.save_checkpoint

    def spy(self, checkpoint, path, storage_options=None):
        written.append(Path(path).name)
        return save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", spy)
    trainer = quiet_trainer(plugins=[AtomicCheckpointIO()])
    trainer.strategy.connect(MLPClassifier((2,), 2, 4, 1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert written == ["a.ckpt"]
    assert MLPClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).num_classes == 2
