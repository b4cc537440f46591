"""Hook of MkDocs: formulas, which arithmatex has marked in a page, become MathML, which browsers render."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the formulas of a page: inline ones (span), and those on lines of their own (div)."""
    return FORMULA.sub(_to_mathml, content)


def _to_mathml(found: re.Match[str]) -> str:
    mathml = convert(html.unescape(found["latex"]).strip(), display="block" if found["tag"] == "div" else "inline")
    return f'<div class="formula">{mathml}</div>' if found["tag"] == "div" else mathml
