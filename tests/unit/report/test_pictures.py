"""Pictures in a page: which files are taken, and how many."""

from __future__ import annotations

import base64
import os

import pytest

from tests.unit.report.runs import png
from zoo.report.pictures import LARGEST, files_of, read_picture, spread, step_of, within_budget


def test_a_png_becomes_a_data_uri_with_its_size(tmp_path):
    (tmp_path / "a.png").write_bytes(png(3, size=17))
    picture = read_picture(tmp_path / "a.png")
    assert picture is not None and (picture.width, picture.height) == (17, 17)
    head, data = picture.uri.split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == png(3, size=17)


@pytest.mark.parametrize("content", [b"", b"<svg onload='alert(1)'>", png()[:20], png() + bytes(LARGEST)])
def test_what_is_no_png_or_too_large_is_left_out(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert read_picture(tmp_path / "a.png") is None


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    run = tmp_path / "run"
    run.mkdir()
    (run / "step_1.txt").symlink_to(secret)
    (run / "step_2.txt").write_text("text")
    assert [path.name for path in files_of(run, "*.txt")] == ["step_2.txt"]


def test_steps_are_read_from_the_names_of_samples(tmp_path):
    names = {"step_0000500.png": 500, "step_12.txt": 12, "step_12-1.png": None, "film.gif": None}
    assert {name: step_of(tmp_path / name) for name in names} == names


def test_few_of_many_are_evenly_spaced_with_the_first_and_the_last():
    assert spread(3, 5) == [0, 1, 2]
    assert spread(101, 5) == [0, 25, 50, 75, 100]
    assert spread(10, 2) == [0, 9]


def test_files_fit_the_budget_but_two_are_kept(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(10)]
    for path in paths:
        path.write_bytes(os.urandom(100))
    assert within_budget(paths, most=8, budget=500) == [paths[k] for k in (0, 2, 4, 7, 9)]
    assert within_budget(paths, most=8, budget=0) == [paths[0], paths[9]]
    assert within_budget([], most=8, budget=500) == []
