"""The checkpoint that `--ckpt_path last` takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from zoo.checkpoints.resume import find_last, newest_checkpoint
from zoo.errors import UserError


def save(path: Path, step: int, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "loops": {}, "global_step": step, **more}, path)
    return path


def checkpoint(root: Path, version: int, step: int, name: str = "last.ckpt") -> Path:
    return save(root / "run" / f"version_{version}" / "checkpoints" / name, step, logged={"RunCSVLogger": step})


def same(folder: Path) -> str:
    """All runs have the same options."""
    return ""


def accept(path: Path) -> None:
    """All checkpoints fit."""


def test_version_and_step_decide_not_times(tmp_path):
    paths = [checkpoint(tmp_path, 2, 50, name) for name in ("best.ckpt", "a.ckpt", "last.ckpt")]
    paths += [checkpoint(tmp_path, 2, 60, "b.ckpt"), checkpoint(tmp_path, 10, 5), checkpoint(tmp_path, 9, 900)]
    paths.append(save(tmp_path / "run" / "version_10_copy" / "checkpoints" / "last.ckpt", 1000))
    for age, path in enumerate(paths):
        os.utime(path, (10**9 + age, 10**9 + age))
    assert find_last(tmp_path, "run", same, accept).path == paths[4]
    paths[4].unlink()
    paths[5].unlink()
    assert find_last(tmp_path, "run", same, accept).path == paths[3]
    paths[3].unlink()
    point = find_last(tmp_path, "run", same, accept)
    assert (point.path, point.step, point.logged) == (paths[2], 50, {"RunCSVLogger": 50})


def test_what_is_no_file_is_skipped_with_a_word(tmp_path):
    good = checkpoint(tmp_path, 0, 7)
    folder = good.parent
    os.mkfifo(folder / "pipe.ckpt")  # reading it would wait for a writer
    (folder / "nowhere.ckpt").symlink_to("gone.ckpt")
    (folder / "loop.ckpt").symlink_to("loop.ckpt")
    (folder / "folder.ckpt").mkdir()
    save(folder / "weights.ckpt", "many")
    (tmp_path / "run" / "version_1").symlink_to("version_1")
    with pytest.warns(UserWarning, match="Skipping") as said:
        assert find_last(tmp_path, "run", same, accept).path == good
    skipped = {str(warning.message).split(": ")[0].rsplit("/")[-1] for warning in said}
    assert skipped == {f"{name}.ckpt" for name in ("pipe", "nowhere", "loop", "folder", "weights")}


def test_a_run_with_other_options_is_skipped_and_refused_if_there_is_no_other(tmp_path, caplog):
    first, _ = checkpoint(tmp_path, 0, 7), checkpoint(tmp_path, 1, 8)

    def difference(folder: Path) -> str:
        return "data.task: sort in the run, add now" if folder.name == "version_1" else ""

    with caplog.at_level("INFO"):
        assert find_last(tmp_path, "run", difference, accept).path == first
    assert "version_1: it is another run (data.task: sort in the run, add now)" in caplog.text
    first.unlink()
    message = r"version_1 is another run \(data\.task: sort in the run, add now\); give its options to resume it"
    with pytest.raises(UserError, match=message):
        find_last(tmp_path, "run", difference, accept)


def test_a_checkpoint_that_does_not_fit_is_another_run(tmp_path):
    path = checkpoint(tmp_path, 0, 7)

    def refuse(path: Path) -> None:
        raise UserError("it holds a GAN")

    with pytest.raises(UserError, match=r"version_0 is another run \(it holds a GAN\)"):
        find_last(tmp_path, "run", same, refuse)
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="it is not a complete checkpoint"):
        assert find_last(tmp_path, "run", same, refuse) is None


def test_a_run_is_locked_before_its_checkpoints_are_read(tmp_path):
    """Another process may have trained on until the lock was free."""
    path = checkpoint(tmp_path, 0, 7)
    checkpoint(tmp_path, 1, 3).write_bytes(b"")
    calls = []

    def lock(folder: Path) -> None:
        calls.append(f"+{folder.name}")
        if folder == path.parent.parent:
            checkpoint(tmp_path, 0, 9)

    with pytest.warns(UserWarning, match="version_1"):
        point = find_last(tmp_path, "run", same, accept, lock, lambda folder: calls.append(f"-{folder.name}"))
    assert (point.step, point.logged) == (9, {"RunCSVLogger": 9})
    assert calls == ["+version_1", "-version_1", "+version_0"]


def test_a_message_names_the_best_checkpoint_of_the_newest_run_that_has_one(tmp_path):
    assert newest_checkpoint(tmp_path, "run") is None
    best = checkpoint(tmp_path, 3, 7, "best.ckpt")
    checkpoint(tmp_path, 3, 9)
    (tmp_path / "run" / "version_4").mkdir()
    assert newest_checkpoint(tmp_path, "run") == best
