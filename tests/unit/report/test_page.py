"""The page: complete in itself, with all parts of a run, and everything in it escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.unit.report.runs import CONFIG, FACTS, HOSTILE, png, write_findings, write_metrics, write_pairs, write_run
from zoo.errors import UserError
from zoo.report.page import render_report, write_report

VOID = {"meta", "img", "input", "br", "path", "circle", "link"}


class Page(HTMLParser):
    """Reads a page; checks that tags are closed in order.

    Attributes:
        tags: names of all tags with their attributes.
        text: text outside of style and script.
        headings: ids of sections.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(html)
        self.text = " ".join(self.text.split())
        assert self._open == [], "tags that are not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [section.get("id") for section in self.all("section")]


def page_of(*folders: Path) -> Page:
    return Page(render_report(folders))


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "gan_digits" / "version_0")


def test_the_page_of_a_run_has_all_that_its_folder_has(run):
    write_pairs(run)
    write_findings(run)
    (run / "gradient_flow_generator.png").write_bytes(png())
    (run / "equilibrium.png").write_bytes(png())
    (run / "curves.png").write_bytes(png())
    page = page_of(run)
    assert page.sections == [
        "samples", "curves", "mistakes", "confusion", "copies", "gradients", "figures", "about", "options", "next",
    ]  # fmt: skip
    for expected in (
        "gan_digits/version_0",
        "GAN trained on Digits",
        "best val/fd 4.5 floor 1.25, at step 199",
        "1 min 15 s",
        "10 of 100 validation samples (10.0%) are classified wrongly by best.ckpt",
        "bee 98.7% true: ant 1.0%",
        "90.0% of 100 are right",
        "each beside the nearest of 1,200 training pictures",
        "its median is 33.5",
        "model.loss relativistic hinge",
        "model.conditional not set true",
        "training samples 1,200 validation samples 300",
        "2026-01-02 03:04:05 UTC",
    ):
        assert expected in page.text, expected
    assert "equilibrium" in page.text and "curves.png" not in page.text


def test_samples_are_in_the_page_in_their_order_and_the_first_and_the_last_are_printed(run):
    images = [image for image in page_of(run).all("img") if "step" in (image["alt"] or "")]
    assert [image["alt"] for image in images] == [f"Samples at step {step}" for step in (0, 150, 300)]
    for step, image in zip((0, 150, 300), images, strict=True):
        assert base64.b64decode((image["src"] or "").split(",")[1]) == png(step // 2)


def test_of_many_samples_a_selection_is_shown_and_four_are_printed(run):
    for step in range(1000, 9000, 50):
        (run / "samples" / f"step_{step:07d}.png").write_bytes(png())
    page = page_of(run)
    frames = [figure for figure in page.all("figure") if figure.get("class") in ("", "printed")]
    assert len(frames) == 24 and sum(figure["class"] == "printed" for figure in frames) == 4
    assert frames[0]["class"] == frames[-1]["class"] == "printed"
    assert "step 8,950" in page.text


def test_texts_of_a_language_model_are_shown(run):
    for path in (run / "samples").iterdir():
        path.unlink()
    (run / "samples" / "step_0000010.txt").write_text(f"to be {HOSTILE}", encoding="utf-8")
    page = page_of(run)
    assert f"to be {HOSTILE}" in page.text and page.all("pre")


def test_the_page_asks_nothing_of_a_network_and_runs_one_script_only(run):
    write_pairs(run)
    write_findings(run)
    html = render_report([run])
    page = Page(html)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert not page.all("link") and not page.all("a")
    assert not re.search(r"https?://|url\(|@import|\bfetch\b", html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_every_picture_and_chart_has_a_text_in_its_place(run):
    write_pairs(run)
    write_findings(run)
    page = page_of(run)
    assert all(image.get("alt") for image in page.all("img"))
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 3 and all(chart.get("aria-label") for chart in charts)
    assert "val/fd from 9 at step 99 to 6 at step 299; floor 1.25" in (charts[0]["aria-label"] or "")
    assert all(head.get("scope") for head in page.all("th"))


def hostile_run(folder: Path) -> Path:
    """A run in which everything that a file can say is hostile."""
    bad = {"class_path": f"a.{HOSTILE}", "init_args": {HOSTILE: HOSTILE}}
    texts = {"command": HOSTILE, "recipes": [HOSTILE], "end": [HOSTILE], "next": [[HOSTILE, HOSTILE]]}
    named = {"model": {"class": f"a.{HOSTILE}", "summary": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    hardware = {"accelerator": HOSTILE, "devices": HOSTILE, "processor": HOSTILE}
    changed = [[HOSTILE, HOSTILE, HOSTILE]]
    facts = FACTS | texts | named | {"hardware": hardware, "changed": changed}
    run = write_run(folder, facts, model=bad, data=bad)
    write_metrics(run, [{"step": 0, f"val/{HOSTILE}": 1.0, "val/fd": 2.0}])
    write_findings(run, (HOSTILE, f'"{HOSTILE}'))
    (run / f"{HOSTILE.replace('/', '')}.png").write_bytes(png())
    return run


@pytest.mark.parametrize("count", [1, 2])
def test_what_comes_from_files_is_escaped(tmp_path, count):
    runs = [hostile_run(tmp_path / f"{k}{HOSTILE.replace('/', '')}") for k in range(count)]
    html = render_report(runs)
    assert html.count("<script") == 1 and "<script>alert" not in html
    page = Page(html)
    assert page.text.count("<script>alert('x')") >= 10, "it is text"
    assert not [attributes for _, attributes in page.tags if "onload" in attributes or "onerror" in attributes]


def test_a_killed_run_says_so_and_how_to_resume_it(tmp_path):
    run = write_run(tmp_path / "gan_digits" / "version_0", facts=None)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    page = page_of(run)
    assert "This run has not ended, or was interrupted" in page.text
    assert "299, the last that was logged" in page.text
    assert re.search(r"resume the run zoo fit --config \S*version_0/config\.yaml --ckpt_path last", page.text)
    assert "model.loss relativistic hinge" in page.text, "beside the recipe of its name"


@pytest.mark.parametrize("left", ["config.yaml", "metrics.csv", "report/facts.json"])
def test_a_run_of_which_little_is_left_has_a_page(tmp_path, left):
    run = write_run(tmp_path / "run")
    for name in {"config.yaml", "metrics.csv", "report/facts.json"} - {left}:
        (run / name).unlink()
    for path in (run / "samples").iterdir():
        path.unlink()
    page = page_of(run)
    assert ("Nothing was logged" in page.text) == (left != "metrics.csv")
    assert "samples" not in page.sections and "curves" in page.sections


DAMAGED = ["report/mistakes.json", "report/nearest.json", "report/confusion.csv", "report/facts.json", "config.yaml"]


@pytest.mark.parametrize("content", ["{", "[1]\n[2]", "\0\udcff"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_in_the_page_and_nothing_else_is_lost(run, name, content):
    write_pairs(run)
    write_findings(run)
    (run / name).write_bytes(content.encode(errors="surrogateescape"))
    page = page_of(run)
    assert "samples" in page.sections and "curves" in page.sections
    assert f"{name} is left out" in page.text


@pytest.mark.parametrize("key", list(FACTS))
def test_facts_of_any_form_make_a_page(tmp_path, key):
    for number, value in enumerate((7, [1, [2]], {"a": {"b": []}})):
        run = write_run(tmp_path / f"run_{number}", FACTS | {key: value})
        assert '<section id="curves">' in render_report([run])


def test_a_sample_that_is_a_copy_is_called_one(run):
    write_pairs(run, distance=0.2)
    assert "1 of the samples is a copy, up to a gray level" in page_of(run).text
    write_pairs(run, distance=20)
    assert "copy, up to" not in page_of(run).text


def test_tests_that_were_made_of_the_run_are_shown(run):
    folder = run / "test"
    folder.mkdir()
    (folder / "classes.csv").write_text("class,class_name,precision,recall,f1,support\n0,ant,0.5,0.25,0.333,40\n")
    (folder / "confusion.csv").write_text("x,ant,bee\nant,30,10\nbee,0,60\n")
    page = page_of(run)
    assert "test: 90.0% of 100 samples are right" in page.text
    assert "ant 0.500 0.250 0.333 40" in page.text


def test_a_matrix_of_many_classes_is_a_list_of_its_most_frequent_mistakes(run):
    write_findings(run)
    names = [f"class {k}" for k in range(30)]
    rows = [[name, *(9 if i == j else 5 if (i, j) == (3, 4) else 0 for j in range(30))] for i, name in enumerate(names)]
    lines = [["x", *names], *rows]
    (run / "report" / "confusion.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    page = page_of(run)
    assert "class 3 class 4 5" in page.text and len(page.all("th")) < 300


# Several runs


def test_runs_are_compared_by_what_differs(tmp_path):
    model = {"class_path": "zoo.GAN", "init_args": {"latent_dim": 64, "loss": "hinge"}}
    runs = [write_run(tmp_path / "gan" / "version_0"), write_run(tmp_path / "gan" / "version_1", model=model)]
    write_metrics(runs[1], [{"step": step, "val/fd": 3.0 + step, "val/fd_floor": 1.25} for step in (0, 99)])
    page = page_of(*runs)
    assert page.sections == ["runs", "differences", "curves", "samples", "metrics"]
    assert "model.latent_dim 32 64" in page.text and "model.loss" not in page.text
    (chart,) = [svg["aria-label"] or "" for svg in page.all("svg") if "val/fd" in (svg.get("aria-label") or "")]
    assert "gan/version_0 from 9 at step 99 to 6 at step 299; gan/version_1 from 3 at step 0 to 102" in chart
    assert chart.count("floor") == 1, "that of all runs is one line"
    assert "gan/version_1 GAN Digits val/fd 3 1.25 0" in page.text
    assert len(page.all("img")) == 6
    assert any(image["alt"] == "Samples of gan/version_1 at step 300" for image in page.all("img"))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [write_run(tmp_path / root / "gan" / "version_0") for root in ("a", "b")]
    text = page_of(*runs).text
    assert str(runs[0]) in text and str(runs[1]) in text


def test_a_killed_run_and_one_without_metrics_are_compared_too(tmp_path):
    runs = [write_run(tmp_path / "a" / "version_0", facts=None), write_run(tmp_path / "b" / "version_0")]
    (runs[1] / "metrics.csv").unlink()
    (runs[1] / "report" / "facts.json").write_text(json.dumps({"sessions": [3], "steps": "x", "model": 1}))
    text = page_of(*runs).text
    assert "not ended" in text and "b/version_0" in text


def test_no_file_is_replaced_unless_it_is_asked_for(run, tmp_path):
    out = tmp_path / "page.html"
    write_report([run], out)
    first = out.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="exists already"):
        write_report([run], out)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"seed_everything": 77}))
    write_report([run], out, overwrite=True)
    assert out.read_text(encoding="utf-8") != first and "77" in Page(out.read_text(encoding="utf-8")).text
