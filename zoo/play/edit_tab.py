"""The tab on which a picture is edited."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from zoo.errors import UserError
from zoo.play.drawing import Drawn, class_names
from zoo.play.editing import MOST_RESULTS, NO_CLASS, Settings, redraw, vary
from zoo.play.events import LIVE, ONE_AT_A_TIME, guarded
from zoo.play.examples import example
from zoo.play.fields import whole_number
from zoo.play.parts import NARROW, class_input, picture_editor, result_image
from zoo.plotting.images import RGBImage

PAINT = "#ff3b30"


def add_edit(model: Any) -> None:
    """A picture to paint on, its redrawn part, and variations of it."""
    start = example(model, 0)
    side = 320
    names = class_names(model)
    first = None if start is None else _of_side(start.picture, side)
    with gr.Row():
        with gr.Column(min_width=NARROW):
            gr.Markdown("Paint over what is to be redrawn, or upload another picture.")
            editor = picture_editor(first, "Picture", "paint", (side, side), side // 8, [PAINT])
            shown = gr.Button("Another picture", elem_id="another")
            number = gr.State(0)
            label = class_input(names, [NO_CLASS], start.label if start and names else NO_CLASS)
            with gr.Row():
                n = gr.Slider(1, MOST_RESULTS, value=4, step=1, label="results", interactive=True)
                steps = gr.Number(20, precision=0, label="steps", info="number of noise levels")
            with gr.Row():
                seed = gr.Number(0, precision=0, label="seed")
                scale = gr.Number(model.guidance_scale, label="guidance_scale", visible=bool(names))
        with gr.Column(min_width=NARROW):
            with gr.Row():
                with gr.Column(min_width=200):
                    resamples = gr.Number(5, precision=0, label="resamples", info="repeats of each step")
                    inpaint = gr.Button("Redraw painted part", variant="primary", elem_id="inpaint")
                with gr.Column(min_width=200):
                    sigma = gr.Number(1.0, label="sigma", info="noise level, the strength")
                    varied = gr.Button("Vary whole picture", elem_id="vary")
            picture = result_image("Picture, and results", "edited", height=440)
            cost = gr.Markdown(elem_id="edit-cost")

    def settings(label: str, n: float, steps: float, seed: float, scale: float | None) -> Settings:
        numbers = (whole_number("results", n), whole_number("steps", steps), whole_number("seed", seed))
        return Settings(label or NO_CLASS, *numbers, scale)

    @guarded
    def run_inpaint(value: dict[str, Any] | None, resamples: float, *common: Any) -> Drawn:
        picture, painted = _picture_and_paint(value)
        return redraw(model, picture, painted, settings(*common), whole_number("resamples", resamples))

    @guarded
    def run_vary(value: dict[str, Any] | None, sigma: float, *common: Any) -> Drawn:
        return vary(model, _picture_and_paint(value)[0], sigma, settings(*common))

    @guarded
    def next_picture(number: int) -> tuple[Any, str, int]:
        found = example(model, number + 1)
        assert found is not None  # it draws samples
        return _of_side(found.picture, side), found.label if names and found.label else NO_CLASS, number + 1

    common = [label, n, steps, seed, scale]
    inpaint.click(run_inpaint, [editor, resamples, *common], [picture, cost], **ONE_AT_A_TIME)
    varied.click(run_vary, [editor, sigma, *common], [picture, cost], **ONE_AT_A_TIME)
    shown.click(next_picture, number, [editor, label, number], **LIVE)


def _of_side(picture: RGBImage, side: int) -> Image.Image:
    """A picture with its longer side in this many pixels, its own pixels as squares."""
    image = Image.fromarray(picture)
    factor = side / max(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)


def _picture_and_paint(value: dict[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """The picture of an editor, and what was painted on it: an alpha channel that is opaque there."""
    picture = (value or {}).get("background")
    if value is None or picture is None:
        raise UserError("there is no picture: upload one, or take an example")
    alpha = np.zeros((picture.height, picture.width), np.uint8)
    for layer in value.get("layers") or ():
        opaque = layer.convert("RGBA").getchannel("A")
        alpha = np.maximum(alpha, np.asarray(opaque.resize(picture.size)))
    painted = Image.new("RGBA", picture.size)
    painted.putalpha(Image.fromarray(alpha))
    return picture, painted
