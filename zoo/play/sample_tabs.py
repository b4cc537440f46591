"""The tabs of generative models: samples, the way between two of them, and the film of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from zoo.play import drawing
from zoo.play.drawing import ANY_CLASS, EACH_CLASS, Drawn, class_names
from zoo.play.events import LIVE, ONE_AT_A_TIME, guarded
from zoo.play.fields import Field, entered, fields_of, whole_number
from zoo.play.parts import NARROW, class_input, field_inputs, new_seed, or_none, result_image, seed_input
from zoo.plotting.images import RGBImage


def add_sample(model: Any) -> None:
    """Number, seed, class and the model's own options, and a grid of samples."""
    images = len(model.input_shape) == 3
    fields = fields_of(model, "sample", drawing.CONTRACT)
    names = class_names(model)
    with gr.Row():
        with gr.Column(min_width=NARROW):
            most = drawing.most_samples(model)
            n = gr.Slider(1, most, value=16 if images else 1000, step=1, label="number of samples", interactive=True)
            seed, new_noise = seed_input()
            label = class_input(names, [ANY_CLASS, EACH_CLASS])
            values = field_inputs(fields)
            button = gr.Button("Draw", variant="primary", elem_id="draw-samples")
        with gr.Column(min_width=NARROW, scale=2):
            picture = result_image("Samples", "samples")
            cost = gr.Markdown(elem_id="cost")

    @guarded
    def draw(n: float, seed: float, label: str, *values: Any) -> Drawn:
        options = entered(model, "sample", drawing.CONTRACT, values)
        return drawing.draw(model, whole_number("number", n), whole_number("seed", seed), label, options)

    inputs = [n, seed, label, *values]
    button.click(draw, inputs, [picture, cost], **ONE_AT_A_TIME)
    new_noise.click(new_seed, None, seed, **LIVE).then(draw, inputs, [picture, cost], **ONE_AT_A_TIME)


def add_wander(model: Any) -> None:
    """Two seeds, and a slider between their samples."""
    with gr.Row():
        with gr.Column(min_width=NARROW):
            first = gr.Number(0, precision=0, label="first seed")
            second = gr.Number(1, precision=0, label="second seed")
            label = class_input(class_names(model), [ANY_CLASS])
            weight = gr.Slider(
                0, 1, value=0, step=0.01, label="position between them", elem_id="position", interactive=True
            )
        with gr.Column(min_width=NARROW, scale=2):
            picture = result_image("Sample", "between", or_none(lambda: drawing.wander(model, 0, 1, 0).picture), 440)
            cost = gr.Markdown()

    @guarded
    def show(first: float, second: float, weight: float, label: str) -> Drawn:
        seeds = whole_number("first", first), whole_number("second", second)
        return drawing.wander(model, *seeds, weight, label)

    inputs: list[Any] = [first, second, weight, label]
    gr.on([part.change for part in inputs], show, inputs, [picture, cost], **LIVE)


def add_film(model: Any) -> None:
    """The trajectory of one sample, and a slider over it."""
    fields = fields_of(model, "trajectory", drawing.CONTRACT)
    default = 30

    def frames_of(seed: int, frames: int, label: str, values: Sequence[Any]) -> list[RGBImage]:
        return drawing.film(model, seed, frames, label, entered(model, "trajectory", drawing.CONTRACT, values))

    _frames(model, fields, default, "Film", frames_of)


def add_path(model: Any) -> None:
    """The model's interpolation between a random pair, and a slider over it."""

    def frames_of(seed: int, frames: int, label: str, values: Sequence[Any]) -> list[RGBImage]:
        return drawing.path(model, seed, frames, label)

    _frames(model, [], 15, "Path", frames_of)


def _frames(
    model: Any,
    fields: list[Field],
    default: int,
    name: str,
    frames_of: Callable[[int, int, str, Sequence[Any]], list[RGBImage]],
) -> None:
    """Fields, a button that computes pictures, and a slider over them."""
    with gr.Row():
        with gr.Column(min_width=NARROW):
            seed, _ = seed_input(button=False)
            label = class_input(class_names(model), [ANY_CLASS])
            count = gr.Number(default, precision=0, label="frames", info="number of pictures")
            values = field_inputs(fields)
            button = gr.Button(f"Compute the {name.lower()}", variant="primary", elem_id=f"compute-{name.lower()}")
        with gr.Column(min_width=NARROW, scale=2):
            picture = result_image(name, name.lower(), height=440)
            position = gr.Slider(
                0, 1, value=1, step=0.005, label="position", elem_id=f"{name.lower()}-position", interactive=True
            )
    state = gr.State([])

    @guarded
    def compute(seed: float, label: str, count: float, *values: Any) -> tuple[list[RGBImage], RGBImage, float]:
        frames = frames_of(whole_number("seed", seed), whole_number("frames", count), label, values)
        return frames, frames[-1], 1.0

    @guarded
    def show(frames: list[RGBImage], position: float) -> RGBImage | None:
        return drawing.frame_at(frames, position) if frames else None

    button.click(compute, [seed, label, count, *values], [state, picture, position], **ONE_AT_A_TIME)
    position.input(show, [state, position], picture, **LIVE)
