"""The tabs of models of text: writing on, and decoding a target."""

from __future__ import annotations

from typing import Any

import gradio as gr

from zoo.play.events import ONE_AT_A_TIME, guarded
from zoo.play.fields import entered, fields_of, whole_number
from zoo.play.parts import NARROW, field_inputs, seed_input
from zoo.play.writing import CONTRACT, source_hint, transduce, write

SHORT = 200  # tokens that the page begins with


def add_write(model: Any) -> None:
    """The beginning of a text, and the text that the model writes on."""
    fields = fields_of(model, "stream", CONTRACT)
    shorter = [field._replace(value=SHORT) if field.name == "max_new_tokens" else field for field in fields]
    with gr.Row():
        with gr.Column(min_width=NARROW):
            prompt = gr.Textbox(label="beginning of the text", lines=2, elem_id="prompt")
            seed, _ = seed_input(button=False)
            values = field_inputs(shorter)
            with gr.Row():
                button = gr.Button("Write", variant="primary", elem_id="write")
                more = gr.Button("Write on", elem_id="write-on")
                stop = gr.Button("Stop", elem_id="stop")
        with gr.Column(min_width=NARROW, scale=2):
            text = gr.Textbox(label="Text", lines=18, max_lines=18, elem_id="text", autoscroll=True, interactive=False)

    @guarded
    def run(prompt: str, seed: float, *values: Any) -> Any:
        options = entered(model, "stream", CONTRACT, values)
        yield from write(model, prompt, whole_number("seed", seed), options)

    started = button.click(run, [prompt, seed, *values], text, **ONE_AT_A_TIME)
    continued = more.click(run, [text, seed, *values], text, **ONE_AT_A_TIME)
    stop.click(None, None, None, cancels=[started, continued])


def add_transduce(model: Any) -> None:
    """A source, and its decoded target."""
    with gr.Row():
        with gr.Column(min_width=NARROW):
            source = gr.Textbox(label="source", info=source_hint(model), elem_id="source")
            button = gr.Button("Decode", variant="primary", elem_id="decode")
        with gr.Column(min_width=NARROW):
            target = gr.Textbox(label="Target", elem_id="target", interactive=False)
    answer = guarded(lambda text: transduce(model, text))
    gr.on([button.click, source.submit], answer, source, target, **ONE_AT_A_TIME)
