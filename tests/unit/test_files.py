"""Files that are written completely or not at all, and never overwritten."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from zoo.callbacks.prediction_table import open_table
from zoo.errors import UserError
from zoo.files import atomic_write, check_output, output_path, remove_partial, save_texts, unused_path, write_output
from zoo.plotting.images import image_grid, save_gif, save_npz, save_png


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


HOPELESS = {
    "notes.txt/a.png": "notes.txt is not a folder, so that .*a.png cannot be written",
    "notes.txt/new/a.png": "notes.txt is not a folder",
    "dangling.png": "dangling.png is a link to nowhere, which does not exist; .* --overwrite",
    "dangling.png/a.png": "dangling.png is not a folder",
    "loop.png": "loop.png is a link to loop.png, which does not exist",
    "pipe.png": "pipe.png is a device or a pipe; choose the name of a file",
    "/dev/null": "/dev/null is a device or a pipe",
    "/proc/new/a.png": "/proc/new/a.png cannot be written: No such file or directory",
    "a\0.png": r"'.*a\\x00.png' is not a name of a file",
    "a" * 240 + ".png": "cannot be written: File name too long",
    "a" * 300 + ".png": "cannot be written: File name too long",
    "": " is a folder",
}


@pytest.mark.parametrize("name", HOPELESS)
def test_a_path_at_which_no_file_can_be_written_is_refused_and_nothing_is_left(name, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    before = set(tmp_path.rglob("*"))
    overwrite = "pipe" in name or "dev" in name  # replacing a file is no leave to replace these
    with pytest.raises(UserError, match=HOPELESS[name]):
        check_output(tmp_path / name, overwrite)
    assert check_output(tmp_path / "new" / "deep" / "a.png").name == "a.png"
    assert set(tmp_path.rglob("*")) == before


def test_a_default_beside_a_dangling_link_gets_a_number_and_a_link_is_replaced_if_asked(tmp_path):
    link, target = tmp_path / "samples.png", tmp_path / "precious"
    link.symlink_to(target)
    assert output_path(None, link) == tmp_path / "samples-1.png"
    target.write_text("precious")
    with write_output(check_output(link, overwrite=True), overwrite=True) as file:
        file.write(b"new")
    assert link.read_bytes() == b"new" and not link.is_symlink()
    assert target.read_text() == "precious"


@contextmanager
def full_disk(size):
    """A limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


NOISE = torch.rand(8, 3, 32, 32)
WRITERS = {
    "a.npz": lambda path: save_npz(path, NOISE),
    "a.png": lambda path: save_png(path, image_grid(NOISE)),
    "a.gif": lambda path: save_gif(path, [image_grid(NOISE)] * 2),
    "a.txt": lambda path: save_texts(path, ["abc" * 1000]),
    "a.csv": lambda path: write_table(path),
    "a.parquet": lambda path: write_table(path),
}


def write_table(path):
    with open_table(path, {"path": str}) as write:
        write({"path": [str(number) for number in range(2000)]})


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_every_output_is_named_and_none_is_left_so_that_it_can_be_repeated(name, tmp_path):
    with full_disk(1000), pytest.raises(UserError, match=rf"{name} cannot be written: .*File too large"):
        WRITERS[name](tmp_path / name)
    assert not list(tmp_path.iterdir())
    WRITERS[name](tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_an_error_about_another_file_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), write_output(tmp_path / "a.txt"):
        (tmp_path / "missing.png").read_bytes()


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
