"""Components that several tabs of the page have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from zoo.errors import UserError
from zoo.play.fields import Field

NARROW = 280  # pixels of a column, below which the page puts columns below one another


def seed_input(button: bool = True) -> tuple[gr.Number, gr.Button]:
    """A field for a random seed, and a button for a new one."""
    seed = gr.Number(0, precision=0, label="seed")
    return seed, gr.Button("New noise", elem_id="new-noise", size="sm", visible=button)


def result_image(label: str, elem_id: str, value: Any = None, height: int | None = None) -> gr.Image:
    """A picture that the model has made, without Gradio's button that shares it."""
    return gr.Image(
        value,
        label=label,
        show_label=False,
        format="png",
        height=height,
        elem_id=elem_id,
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def picture_editor(
    value: Image.Image | None, label: str, elem_id: str, size: tuple[int, int], brush: int, colors: Sequence[str]
) -> gr.ImageEditor:
    """A picture to paint on with the mouse, or to replace by an uploaded one.

    Args:
        value: picture that it begins with.
        label: name above it.
        elem_id: its id in the page.
        size: width and height of the canvas, in pixels.
        brush: width of the brush, in pixels of the canvas.
        colors: colors of the brush, of which the first is chosen.
    """
    return gr.ImageEditor(
        value,
        type="pil",
        label=label,
        elem_id=elem_id,
        sources=("upload", "clipboard"),
        brush=gr.Brush(brush, list(colors), color_mode="fixed"),
        layers=False,
        transforms=(),
        canvas_size=size,
        height=460,
    )


def new_seed() -> int:
    """A seed that nobody has chosen."""
    return int(np.random.default_rng().integers(2**31))


def class_input(names: list[str], others: list[str], value: str | None = None) -> gr.Dropdown:
    """A choice of a class by its name, after `others`; hidden for a model without classes."""
    return gr.Dropdown([*others, *names], value=value or others[0], label="class", elem_id="class", visible=bool(names))


def field_inputs(fields: Sequence[Field]) -> list[gr.components.Component]:
    """Components for fields, in their order."""
    return [field_input(field) for field in fields]


def field_input(field: Field) -> gr.components.Component:
    """The component for a field."""
    about: dict[str, Any] = {"label": field.name, "info": field.info or None}
    if field.kind == "choice":
        return gr.Dropdown(list(field.choices), value=field.value, **about)
    if field.kind == "switch":
        return gr.Checkbox(bool(field.value), **about)
    if field.kind == "text" or field.value is None:  # a field for a number is never empty: it would show 0
        return gr.Textbox(field.value, placeholder="" if field.kind == "text" else "not set", **about)
    return gr.Number(field.value, precision=0 if field.kind == "integer" else None, **about)


def or_none(compute: Callable[[], Any]) -> Any:
    """What a function computes; None if the model needs something for it that is not entered yet."""
    try:
        return compute()
    except UserError:
        return None
