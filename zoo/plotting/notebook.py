"""Output in a notebook: HTML and pictures that are replaced in place."""

from __future__ import annotations

import base64
import io
import sys
from html import escape
from typing import Any

import numpy as np
from PIL import Image


class Rich:
    """A text that a notebook shows as HTML.

    Args:
        html: text as HTML.
        text: the same as plain text, for where HTML is not shown.
    """

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Output:
    """One output of a cell, which every `show` replaces."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, content: Any) -> None:
        """Shows an object as a notebook does for the last line of a cell."""
        from IPython.display import display  # there is one where this is called: `in_notebook`

        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, and not a script or a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def captioned(image: np.ndarray[Any, np.dtype[np.uint8]], caption: str) -> Rich:
    """A picture, uint8 (height, width, 3), with a line under it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    caption_html = f'<div style="font-size: smaller">{escape(caption)}</div>'
    return Rich(f'<img src="{source}" alt="{escape(caption)}">{caption_html}', f"[picture: {caption}]")


def table(rows: dict[str, str], title: str) -> str:
    """A table of names and values under a title, as HTML; all of them are escaped."""
    cells = "".join(
        f'<tr><th style="text-align: left; vertical-align: top">{escape(name)}</th>'
        f'<td style="text-align: left">{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f"<div><strong>{escape(title)}</strong><table>{cells}</table></div>"
