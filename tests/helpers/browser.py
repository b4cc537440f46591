"""The page of `play` in the distribution's Chromium, with real clicks; nothing but this machine is reached."""

from __future__ import annotations

import io
import shutil
import socket
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.play.serving import HOST

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds for an answer, on a machine that has other work
ATTEMPTS = 5


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class View:
    """One page in the browser.

    Args:
        browser: browser of `open_browser`, or a context of it.
        address: address of the page.
        width: width of the window, in pixels.

    Attributes:
        page: page of Playwright.
        refused: addresses on other machines that were asked for; none of them is reached.
        saved: number of pictures that editors of the page have handed to the server.
    """

    def __init__(self, browser: Any, address: str, width: int = 1200) -> None:
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.refused: list[str] = []
        self.saved = 0
        self.page.on("request", self._count_saved)
        self.page.route("**/*", self._answer)
        self.page.goto(address)
        self.page.get_by_role("tab").first.wait_for()

    def _count_saved(self, request: Any) -> None:
        self.saved += "component_server" in request.url

    def _answer(self, route: Any) -> None:
        if urllib.parse.urlparse(route.request.url).hostname in (HOST, None):
            route.continue_()
        else:
            self.refused.append(route.request.url)
            route.abort()

    def open_tab(self, title: str) -> None:
        """Opens a tab by its title."""
        self.page.get_by_role("tab", name=title).first.click()

    def choose(self, dropdown: str, value: str) -> None:
        """Chooses a value of a visible dropdown by its id."""
        self.page.locator(f"#{dropdown} input:visible").click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def text(self, element: str, contains: str = "") -> str:
        """Text of an element by its id, once it contains something."""
        found = self.page.locator(f"#{element}").filter(has_text=contains)
        found.wait_for()
        return found.inner_text()

    def error(self) -> str:
        """The line of the error that is shown, which is then closed."""
        toast = self.page.get_by_test_id("toast-body").first
        toast.wait_for()
        title, *lines = toast.inner_text().split("\n")
        assert title == "Error"
        self.page.get_by_test_id("toast-close").first.click()
        toast.wait_for(state="detached")
        return lines[-1]

    def source(self, element: str) -> str:
        """Address of the picture in an element by its id, once there is one."""
        picture = self.page.locator(f"#{element} img").first
        picture.wait_for()
        return picture.get_attribute("src")

    def picture(self, element: str, before: str = "") -> np.ndarray:
        """Pixels of the picture in an element by its id, once its address is another one than before."""
        shown = "i => i && i.src && i.src !== before"
        script = f"([id, before]) => ({shown})(document.querySelector(`#${{id}} img`))"
        self.page.wait_for_function(script, arg=[element, before])
        answer = self.page.request.get(self.source(element))
        return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))

    def stroke(self, editor: str, points: Sequence[tuple[float, float]], answered: bool = True) -> None:
        """Draws a line in an editor with the mouse.

        Args:
            editor: id of the editor.
            points: corners of the line, as fractions of the editor's width and height.
            answered: whether the page hands over every stroke, not only when a button is clicked: then the line is
                drawn again if the editor was not ready for it.
        """
        canvas = self.page.locator(f"#{editor} canvas").first
        canvas.wait_for()
        for _ in range(ATTEMPTS):
            self.page.wait_for_timeout(1500)  # the editor fits its canvas to the window
            saved = self.saved
            box = canvas.bounding_box()
            corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
            self.page.mouse.move(*corners[0])
            self.page.mouse.down()
            for corner in corners[1:]:
                self.page.mouse.move(*corner, steps=4)
            self.page.mouse.up()
            for _ in range(20):
                self.page.wait_for_timeout(250)
                if not answered or self.saved > saved:
                    self.page.wait_for_timeout(1500)  # until it is painted, and its layers are handed over
                    return
        pytest.fail(f"the page did not take what was drawn in {editor}")
