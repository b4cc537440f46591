"""The page of `play` in a browser: what is clicked, drawn and typed, against the functions behind it."""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from tests.helpers.browser import View, free_port, open_browser
from zoo.cli.main import main
from zoo.datamodules import FashionMNISTSubset
from zoo.play import drawing
from zoo.play.serving import HOST, POLICY, prepare_environment, start

pytestmark = [pytest.mark.browser, pytest.mark.slow]


class SlowPoints(torch.nn.Module):
    """A model of points that notes how many of its samples are drawn at the same time."""

    input_shape = (2,)
    drawing, most, calls = 0, 0, 0

    def sample(self, n, *, labels=None, generator=None):
        self.drawing += 1
        self.calls += 1
        self.most = max(self.most, self.drawing)
        time.sleep(0.5)
        self.drawing -= 1
        return torch.randn(n, 2, generator=generator)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """A browser whose pages are closed when the test ends."""
    context = chromium.new_context()
    yield context
    context.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Function that serves a page, or the page of a model, until the test ends; returns its address."""
    prepare_environment()
    from zoo.play.page import build_page

    with ExitStack() as stack:

        def serve_one(model: Any) -> str:
            page = build_page(model, "tested") if isinstance(model, torch.nn.Module) else model
            stack.callback(page.close, verbose=False)
            return start(page, free_port())

        yield serve_one


def test_a_picture_that_is_drawn_with_the_mouse_is_classified(browser, serve):
    view = View(browser, serve(zoo.load("resnet-fashion-mnist")))
    trousers = [(0.4, 0.3), (0.4, 0.75), (0.44, 0.3), (0.6, 0.3), (0.6, 0.75)]
    view.stroke("draw", trousers)
    shown = view.text("probabilities", "%").split("\n")
    shares = [int(line[:-1]) for line in shown if line.endswith("%")]
    assert set(FashionMNISTSubset.class_names) <= set(shown)
    assert len(shares) == 10 and abs(sum(shares) - 100) <= 5
    assert shown[1] == "trouser", "in large letters"
    assert "The model has no dropout" in view.text("uncertainty", "Entropy")
    seen = view.picture("seen")[::18, ::18, 0]
    assert seen.max() > 200 and np.mean(seen < 10) > 0.5, "white trousers on black, as the model's training data"


def test_an_example_is_classified_and_cleared(browser, serve):
    view = View(browser, serve(zoo.load("resnet-fashion-mnist")))
    view.page.wait_for_timeout(2000)
    view.page.click("#example")
    assert "sandal" in view.text("probabilities", "%")
    view.page.click("#clear")
    view.page.wait_for_function("!document.querySelector('#probabilities').innerText.includes('%')")


def test_the_slider_between_two_samples_moves_the_picture(browser, serve):
    model = zoo.load("gan-digits")
    view = View(browser, serve(model))
    view.open_tab("Between two samples")
    first = view.source("between")
    assert np.array_equal(view.picture("between"), drawing.wander(model, 0, 1, 0).picture)
    slider = view.page.locator("#position input[type=range]")
    box = slider.bounding_box()
    view.page.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2)
    moved = view.picture("between", before=first)
    weight = float(slider.input_value())
    assert 0.6 < weight < 0.8
    assert np.array_equal(moved, drawing.wander(model, 0, 1, weight).picture)


def test_a_class_is_chosen_and_sampled_and_the_cost_is_shown(browser, serve):
    model = zoo.load("diffusion-digits")
    view = View(browser, serve(model))
    expected = drawing.draw(model, 16, 0, "3", {"steps": model.steps, "solver": model.solver})
    view.choose("class", "3")
    view.page.click("#draw-samples")
    assert np.array_equal(view.picture("samples"), expected.picture)
    assert re.fullmatch(rf"16 samples: {model.steps} network evaluations, [\d,]+ ms", view.text("cost", "samples"))
    view.page.get_by_label("steps").first.fill("2")
    view.page.click("#draw-samples")
    view.text("cost", "16 samples: 2 network evaluations")


def test_a_film_is_looked_through_with_a_slider(browser, serve):
    model = zoo.load("diffusion-digits")
    view = View(browser, serve(model))
    view.open_tab("Film")
    view.page.get_by_label("frames").fill("4")
    view.page.click("#compute-film")
    last = view.picture("film")
    address = view.source("film")
    frames = drawing.film(model, 0, 4, options={"solver": model.solver})
    assert np.array_equal(last, frames[-1])
    box = view.page.locator("#film-position input[type=range]").bounding_box()
    view.page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    assert np.array_equal(view.picture("film", before=address), frames[0])


def test_a_part_of_a_picture_is_painted_over_and_redrawn(browser, serve):
    view = View(browser, serve(zoo.load("diffusion-digits")))
    view.open_tab("Edit a picture")
    view.page.locator("#paint canvas").first.wait_for()
    view.page.wait_for_timeout(1500)
    view.page.click("#inpaint")
    assert view.error() == "there is nothing to redraw: paint over a part of the picture"
    view.stroke("paint", [(0.35, 0.25), (0.6, 0.25), (0.6, 0.35)], answered=False)
    view.page.click("#inpaint")
    share = int(re.search(r"(\d+)% of the pixels redrawn: \d+ network", view.text("edit-cost", "redrawn"))[1])
    assert 5 <= share <= 50
    grid = view.picture("edited").astype(int)
    side = (grid.shape[1] - 2) // 3  # of a picture and the white line beside it
    corners = [(2 + row * side, 2 + column * side) for row in range(2) for column in range(3)]
    tiles = [grid[top : top + side - 2, left : left + side - 2] for top, left in corners]
    given, masked, *results = tiles
    kept = np.abs(masked - given).max(-1) == 0
    assert 0.4 < kept.mean() < 1
    for result in results:
        assert np.abs(result - given)[kept].max() == 0, "what was not painted on is as before"
    assert max(np.abs(result - given)[~kept].max() for result in results) > 20


def test_a_picture_is_varied(browser, serve):
    view = View(browser, serve(zoo.load("diffusion-digits")))
    view.open_tab("Edit a picture")
    view.page.locator("#paint canvas").first.wait_for()
    view.page.wait_for_timeout(1500)
    view.page.get_by_label("sigma").fill("0.5")
    view.page.click("#vary")
    assert view.text("edit-cost", "redrawn below sigma 0.5: 20 network evaluations")


def test_a_language_model_writes_on_while_it_is_watched_and_is_stopped(browser, serve, checkpoint):
    model = zoo.load(checkpoint("letters"))
    view = View(browser, serve(model))
    view.page.locator("#prompt textarea").fill("ab")
    length = view.page.get_by_label("max_new_tokens")
    length.fill("20")
    view.page.click("#write")
    written = view.page.locator("#text textarea")
    view.page.wait_for_function("document.querySelector('#text textarea').value.length == 22")
    text = written.input_value()
    assert re.fullmatch("ab[abc]{20}", text)
    view.page.click("#write-on")
    view.page.wait_for_function("document.querySelector('#text textarea').value.length == 42")
    assert written.input_value().startswith(text)
    length.fill("10000")
    view.page.click("#write")
    view.page.wait_for_function("document.querySelector('#text textarea').value.length > 60")
    view.page.click("#stop")
    view.page.wait_for_timeout(1500)
    stopped = written.input_value()
    view.page.wait_for_timeout(1500)
    assert written.input_value() == stopped and len(stopped) < 10_002
    view.page.locator("#prompt textarea").fill("abz")
    view.page.click("#write")
    assert view.error().startswith("the character 'z' is not in the text on which the model was trained")


def test_a_mistake_is_the_line_of_the_command_line(browser, serve):
    view = View(browser, serve(zoo.load("gan-digits")))
    view.page.get_by_label("seed").first.fill("-1")
    view.page.click("#draw-samples")
    assert view.error() == "seed is -1; it must be at least 0 and below 2**32"
    view.page.get_by_label("seed").first.fill("")
    view.page.click("#draw-samples")
    assert view.error() == "seed is empty; it must be a whole number"
    assert "Traceback" not in view.page.content()


def test_a_model_is_loaded_when_it_is_chosen(browser, serve):
    from zoo.play.page import build_choice

    loaded = []
    page = build_choice(["gan-digits", "resnet-fashion-mnist"], lambda name: loaded.append(name) or zoo.load(name))
    view = View(browser, serve(page))
    view.page.get_by_role("tab", name="Draw samples").first.wait_for()
    assert loaded == ["gan-digits"]
    view.choose("model", "resnet-fashion-mnist")
    view.page.get_by_role("tab", name="Classify").first.wait_for()
    assert view.page.get_by_role("tab", name="Draw samples").count() == 0
    view.choose("model", "gan-digits")
    view.page.get_by_role("tab", name="Draw samples").first.wait_for()
    view.page.click("#draw-samples")
    assert np.array_equal(view.picture("samples"), drawing.draw(zoo.load("gan-digits"), 16, 0).picture)
    assert loaded == ["gan-digits", "resnet-fashion-mnist"], "each once"


def test_two_pages_compute_one_after_the_other(browser, serve):
    model = SlowPoints()
    address = serve(model)
    views = [View(browser, address), View(browser, address)]
    for view in views:
        view.page.click("#draw-samples", no_wait_after=True)
    for view in views:
        assert view.picture("samples").shape == (500, 500, 3)
    assert (model.calls, model.most) == (2, 1)


@pytest.mark.parametrize("name", ["resnet-fashion-mnist", "diffusion-digits"])
def test_nothing_is_asked_of_another_machine(browser, serve, name):
    view = View(browser, serve(zoo.load(name)))
    for tab in view.page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            view.page.wait_for_timeout(1000)
    assert view.refused == []
    view.page.evaluate("fetch('https://example.com').catch(() => 0)")
    assert view.refused == [], "the page's policy refuses it before it is sent"


def test_only_this_machine_is_served_and_no_api(serve):
    address = urllib.parse.urlparse(serve(zoo.load("gan-digits")))
    assert address.hostname == HOST
    with urllib.request.urlopen(address.geturl()) as answer:
        assert answer.headers["content-security-policy"] == POLICY
    connection = http.client.HTTPConnection(HOST, address.port)
    connection.request("GET", "/", headers={"Host": "attacker.example"})
    assert connection.getresponse().status == 400, "another name for this machine"
    with urllib.request.urlopen(f"{address.geturl()}gradio_api/info") as answer:
        assert b'"named_endpoints":{}' in answer.read().replace(b" ", b"")


def test_the_command_says_the_address_and_ends_by_ctrl_c(capsys, in_an_empty_folder, monkeypatch):
    port = free_port()
    served = []

    def look_and_type_ctrl_c() -> None:
        with urllib.request.urlopen(f"http://{HOST}:{port}/") as answer:
            served.append(answer.status)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("zoo.cli.play._wait", look_and_type_ctrl_c)
    with pytest.raises(SystemExit) as stop:
        main(["play", "--model", "gan-digits", "--port", str(port)])
    assert stop.value.code == 130
    assert served == [200]
    assert capsys.readouterr().out == f"http://{HOST}:{port}/ has the page; Ctrl-C ends it\n"
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://{HOST}:{port}/")
