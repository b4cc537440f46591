"""Output that is replaced in place, and HTML that is safe."""

from __future__ import annotations

import base64
import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zoo.plotting.notebook import Output, captioned, in_notebook, table


@pytest.mark.parametrize(
    ("shell", "expected"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)]
)
def test_only_a_kernel_is_a_notebook(shell, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook() is expected


def test_without_ipython_there_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook() and "IPython" not in sys.modules


def test_the_second_picture_replaces_the_first(monkeypatch):
    updates: list[str] = []
    handle = SimpleNamespace(update=updates.append)

    def display(content, display_id):
        updates.append(f"new {content}")
        return handle

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    output = Output()
    output.show("a")
    output.show("b")
    assert updates == ["new a", "b"]


def test_a_captioned_picture_holds_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = captioned(pixels, "<after> 5")
    (data,) = re.findall(r"base64,([^\"]+)", picture.html)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    assert "<after>" not in picture.html and repr(picture) == "[picture: <after> 5]"


def test_names_and_values_of_a_table_are_escaped():
    html = table({"<a>": "<b>"}, "<c>")
    assert not re.search("<[abc]>", html) and html.count("&lt;") == 3
