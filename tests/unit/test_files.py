"""Files that are written completely or not at all, and never overwritten."""

import os
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.files import atomic_write, check_output, output_path, remove_partial, save_texts, unused_path, write_output


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_leaves_the_old_file_and_no_other(error, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write():
        with atomic_write(path) as file:
            file.write(b"half of the")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_contents_are_on_disk_before_the_file_is_replaced(tmp_path, monkeypatch):
    events = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("sync") or fsync(handle))
    monkeypatch.setattr(Path, "replace", lambda *paths: events.append("replace") or replace(*paths))
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
    assert events == ["sync", "replace", "sync"], "the file, its new name, and the folder"


def test_partial_files_of_a_killed_process_are_removed_and_no_others(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    kept = [tmp_path / "a.partial", tmp_path / ".hidden", tmp_path / "checkpoints" / "last.ckpt"]
    partial = [tmp_path / ".a.txt.12.partial", tmp_path / "checkpoints" / ".last.ckpt.34.partial"]
    for path in (*kept, *partial):
        path.touch()
    remove_partial(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_an_existing_output_is_refused_or_replaced_and_a_new_one_gets_its_folder(tmp_path):
    path = tmp_path / "new" / "a.png"
    with write_output(path) as file:
        file.write(b"old")
    for write in (check_output, lambda path: write_output(path).__enter__(), lambda path: output_path(path, "b.png")):
        with pytest.raises(UserError, match=r"a\.png exists already; choose another name, or .* with --overwrite"):
            write(path)
    assert output_path(path, "b.png", overwrite=True) == path
    with write_output(path, overwrite=True) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(UserError, match=r"new is a folder; choose another name"):
        output_path(path.parent, "b.png", overwrite=True)


def test_a_default_output_that_exists_gets_a_number_unless_it_is_replaced(tmp_path):
    default = tmp_path / "samples.png"
    assert output_path(None, default) == default
    default.touch()
    assert output_path(None, default) == tmp_path / "samples-1.png"
    assert output_path(None, default, overwrite=True) == default


def test_an_unused_path_has_the_first_free_number(tmp_path):
    path = tmp_path / "a.b.csv"
    assert unused_path(path) == path
    for name in ("a.b.csv", "a.b-1.csv", "a.b-3.csv"):
        (tmp_path / name).touch()
    assert unused_path(path) == tmp_path / "a.b-2.csv"


def test_texts_are_saved_with_a_line_between_them(tmp_path):
    path = tmp_path / "samples" / "a.txt"
    save_texts(path, ["Äpfel", "pears"])
    assert path.read_text(encoding="utf-8") == f"Äpfel\n{'-' * 40}\npears\n"
