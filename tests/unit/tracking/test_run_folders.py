"""Folders of runs and their locks."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from zoo.errors import UserError
from zoo.tracking.run_folders import RunFolders, RunLock

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    yield
    RunLock.release()


def test_runs_that_start_at_the_same_time_get_different_folders(tmp_path):
    made = []

    def start():
        made.append(RunFolders().new(tmp_path, "gan"))

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


def test_an_empty_folder_is_used_again_unless_a_run_is_starting_there(tmp_path):
    parent = tmp_path / "gan"
    used, empty, starting = (parent / f"version_{number}" for number in (0, 2, 1))
    for folder in (used, empty, starting):
        folder.mkdir(parents=True)
    (used / "config.yaml").touch()
    (parent / "version_3").symlink_to("version_3")
    handle = os.open(starting, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process does
    assert [RunFolders().new(tmp_path, "gan").name for _ in range(2)] == ["version_2", "version_4"]
    os.close(handle)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_on_a_file_system_runs_start_in_new_folders(code, tmp_path, monkeypatch, caplog):
    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "gan" / "version_0").mkdir(parents=True)
    with caplog.at_level("INFO"):
        assert RunFolders().new(tmp_path, "gan").name == "version_1", "a run may be starting in the other"
        RunLock.take(tmp_path)
    assert f"cannot be locked ({os.strerror(code)})" in caplog.text


def test_a_folder_that_is_removed_or_replaced_is_noticed(tmp_path):
    for replace in (False, True):
        folder = RunFolders().new(tmp_path, "gan")
        assert RunLock.removed() is None
        folder.rename(tmp_path / f"trash_{replace}")
        if replace:
            folder.mkdir()
        assert RunLock.removed() == folder
        RunLock.release()


def test_only_folders_of_runs_that_did_not_start_are_discarded(tmp_path):
    folders = RunFolders()
    started, failed = folders.new(tmp_path / "runs", "gan"), folders.new(tmp_path / "runs", "gan")
    (started / "metrics.csv").touch()
    (failed / "config.yaml").touch()
    folders.discard()
    assert started.is_dir() and not failed.exists()
    other = RunFolders()
    other.new(tmp_path / "new", "gan")
    other.discard()
    assert not (tmp_path / "new").exists()
    assert tmp_path.exists()


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"choose another --run\.root"):
        RunFolders().new(tmp_path / "file", "gan")


def test_a_run_with_checkpoints_is_never_discarded(tmp_path):
    folders = RunFolders()
    trained, logged = folders.new(tmp_path, "gan"), folders.new(tmp_path, "gan")
    (trained / "checkpoints").mkdir()
    (logged / "metrics.csv").touch()
    folders.discard(keep_metrics=False)
    assert trained.is_dir() and not logged.exists()


def test_a_locked_folder_is_refused_until_the_lock_is_released(tmp_path):
    other = os.open(tmp_path, os.O_RDONLY)  # locks belong to the open file, as for another process
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"is still in progress, so it cannot be resumed; leave out --ckpt_path last"):
        RunLock.take(tmp_path)
    os.close(other)
    RunLock.take(tmp_path)
    third = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    RunLock.release()
    fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(third)
