"""Files of pictures: which are found, and in which order."""

from __future__ import annotations

import pytest

from zoo.errors import UserError
from zoo.pictures.files import find_pictures

FILES = ("b.png", "a.JPG", "deep/er/c.webp", "deep/d.gif", ".hidden.png", ".thumbs/e.png", "notes.txt", "other/f.txt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*sources: str) -> list[str]:
    return [path.as_posix() for path in find_pictures(sources)]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (["."], ["a.JPG", "b.png", "deep/d.gif", "deep/er/c.webp"]),
        (["notes.txt", "b.png"], ["b.png", "notes.txt"]),  # what is named is taken
        (["*.png", "deep/*"], ["b.png", "deep/d.gif", "deep/er/c.webp"]),
        (["**/*.webp", "deep", "./b.png", "b.png"], ["b.png", "deep/d.gif", "deep/er/c.webp"]),
        ([".hidden.png"], [".hidden.png"]),
    ],
)
def test_folders_files_and_patterns_give_sorted_paths_each_once(sources, found):
    assert names(*sources) == found


def test_a_file_is_taken_once_however_it_is_written(folder):
    assert names("deep/../b.png", "b.png", str(folder / "b.png")) == ["deep/../b.png"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder):
    (folder / "x[1].png").touch()
    assert names("x[1].png") == ["x[1].png"]


def test_a_link_to_a_folder_above_is_not_followed_in_circles(folder):
    (folder / "deep" / "loop").symlink_to(folder / "deep")
    assert names("deep") == ["deep/d.gif", "deep/er/c.webp"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere does not exist; give a folder of pictures"),
        ("*.tif", r"\*\.tif matches no file"),
        ("other", "other has no pictures, in it or below it"),
        ("oth*", r"oth\* has no pictures"),
    ],
)
def test_what_finds_nothing_is_named(source, message):
    with pytest.raises(UserError, match=message):
        find_pictures(["b.png", source])
