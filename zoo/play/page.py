"""The page: a heading and tabs for one model, or a choice of the trained models of the zoo."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import gradio as gr

from zoo.errors import check_choice
from zoo.play.abilities import abilities_of, describe
from zoo.play.events import ONE_AT_A_TIME, explained
from zoo.play.tabs import add_tab


def build_page(model: Any, name: str) -> gr.Blocks:
    """A page for one model.

    Args:
        model: model from `zoo.load`, on its device.
        name: what the heading calls it.

    Raises:
        UserError: the page can do nothing with the model.
    """
    abilities_of(model)
    with _blocks(name) as page:
        _add_model(model, name)
    return page


def build_choice(names: Sequence[str], load: Callable[[str], Any]) -> gr.Blocks:
    """A page on which a model is chosen; it is loaded when it is chosen for the first time.

    Args:
        names: names of the models; the page begins with the first one.
        load: function that loads the model of a name, on its device.
    """
    load = cache(load)
    with _blocks("lightning-zoo") as page:
        chosen = gr.Dropdown(list(names), value=names[0], label="trained model", elem_id="model")
        # Gradio confuses the components of two models that follow one another; with nothing between them it does not.
        shown = gr.State(names[0])
        cleared = chosen.change(lambda: None, None, shown, **ONE_AT_A_TIME)
        cleared.then(lambda name: name, chosen, shown, **ONE_AT_A_TIME)
        rendered = {key: ONE_AT_A_TIME[key] for key in ("concurrency_id", "concurrency_limit")}

        @gr.render(inputs=shown, **rendered)
        def show(name: str | None) -> None:
            if name is None:
                return
            with explained():
                check_choice("model", name, names)
                _add_model(load(name), name)

    return page


def _blocks(title: str) -> gr.Blocks:
    # Files of uploads and of pictures that were shown are deleted after an hour.
    return gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600))


def _add_model(model: Any, name: str) -> None:
    gr.HTML(f"<h2>{html.escape(name)}</h2><p>{html.escape(describe(model))}</p>")
    with gr.Tabs():
        for ability in abilities_of(model):
            add_tab(ability, model)
