"""The tabs of the page, one for each ability of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from zoo.play.abilities import Ability
from zoo.play.classify_tab import add_classify
from zoo.play.edit_tab import add_edit
from zoo.play.sample_tabs import add_film, add_path, add_sample, add_wander
from zoo.play.text_tabs import add_transduce, add_write

#: Title and builder of each tab.
TABS: dict[Ability, tuple[str, Callable[[Any], None]]] = {
    "classify": ("Classify", add_classify),
    "sample": ("Draw samples", add_sample),
    "wander": ("Between two samples", add_wander),
    "path": ("Between two samples", add_path),
    "film": ("Film", add_film),
    "edit": ("Edit a picture", add_edit),
    "write": ("Write", add_write),
    "transduce": ("Translate", add_transduce),
}


def add_tab(ability: Ability, model: Any) -> None:
    """Adds the tab of an ability to the page that is being built."""
    title, add = TABS[ability]
    with gr.Tab(title, id=ability):
        add(model)
