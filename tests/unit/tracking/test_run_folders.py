"""Folders of runs and their locks."""

import os
import threading

import pytest

from zoo.errors import UserError
from zoo.tracking.run_folders import RunFolders, RunLock


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
    fcntl = pytest.importorskip("fcntl")
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
